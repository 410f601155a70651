package dataserver

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// LegacySchema is the SQL that makes the legacy database.
//
//go:embed legacy.sql
var LegacySchema string

// A Generation is one of the two data servers.
type Generation string

// The generations.
const (
	Legacy    Generation = "legacy"
	Successor Generation = "successor"
)

// An Order is what both data servers show.
type Order struct {
	ID       int64       `json:"id"`
	Customer string      `json:"customer"`
	SKU      string      `json:"sku"`
	Quantity int         `json:"quantity"`
	Total    json.Number `json:"total"`
	ServedBy Generation  `json:"served_by"`
}

// A Server is a data server over one database. It is an http.Handler.
type Server struct {
	generation Generation
	pool       *pgxpool.Pool
	mux        *http.ServeMux
}

// New returns a data server over the database of a connection string. It connects to nothing yet.
func New(ctx context.Context, g Generation, dsn string) (*Server, error) {
	pool, err := pgxpool.New(ctx, dsn)
	if err != nil {
		return nil, err
	}
	s := &Server{generation: g, pool: pool, mux: http.NewServeMux()}
	s.mux.HandleFunc("GET /orders/{id}", s.show)
	if g == Legacy {
		s.mux.HandleFunc("POST /place", s.placeLegacy)
	} else {
		s.mux.HandleFunc("POST /v2/orders", s.placeSuccessor)
	}
	return s, nil
}

// Close ends the server's sessions.
func (s *Server) Close() { s.pool.Close() }

// ServeHTTP implements [http.Handler].
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.mux.ServeHTTP(w, r) }

func (s *Server) placeLegacy(w http.ResponseWriter, r *http.Request) {
	var c struct {
		Customer string `json:"customer"`
		Item     string `json:"item"`
		Pieces   int    `json:"pieces"`
		Cents    int64  `json:"cents"`
	}
	if !read(w, r, &c) {
		return
	}
	id, err := s.place(r, `WITH placed AS (INSERT INTO till.orders (customer, item, pieces, cents) VALUES ($2, $3, $4, $5) RETURNING id)
		INSERT INTO till.commands (key, order_id) SELECT $1, id FROM placed RETURNING order_id`,
		`SELECT order_id FROM till.commands WHERE key = $1`, c.Customer, c.Item, c.Pieces, c.Cents)
	answer(w, err, map[string]int64{"order": id})
}

func (s *Server) placeSuccessor(w http.ResponseWriter, r *http.Request) {
	var c struct {
		Customer string      `json:"customer"`
		SKU      string      `json:"sku"`
		Quantity int         `json:"quantity"`
		Total    json.Number `json:"total"`
	}
	if !read(w, r, &c) {
		return
	}
	id, err := s.place(r, `WITH placed AS (INSERT INTO sales.orders (customer, sku, quantity, total, placed_at) VALUES ($2, $3, $4, $5::text::numeric, now()) RETURNING id)
		INSERT INTO sales.commands (key, order_id) SELECT $1, id FROM placed RETURNING order_id`,
		`SELECT order_id FROM sales.commands WHERE key = $1`, c.Customer, c.SKU, c.Quantity, c.Total.String())
	answer(w, err, map[string]int64{"id": id})
}

// place makes an order together with its key, unless the key is there: then the order was placed before.
func (s *Server) place(r *http.Request, insert, find string, args ...any) (id int64, err error) {
	key := strings.Trim(r.Header.Get("Idempotency-Key"), `"`)
	if key == "" {
		return 0, errNoKey
	}
	err = s.pool.QueryRow(r.Context(), find, key).Scan(&id)
	if !errors.Is(err, pgx.ErrNoRows) {
		return id, err
	}
	err = s.pool.QueryRow(r.Context(), insert, append([]any{key}, args...)...).Scan(&id)
	var pe *pgconn.PgError
	if errors.As(err, &pe) && pe.Code == "23505" { // the same command came twice at once
		err = s.pool.QueryRow(r.Context(), find, key).Scan(&id)
	}
	return id, err
}

var errNoKey = errors.New("a command without Idempotency-Key")

func (s *Server) show(w http.ResponseWriter, r *http.Request) {
	id, err := strconv.ParseInt(r.PathValue("id"), 10, 64)
	if err != nil {
		http.Error(w, "no such order", http.StatusNotFound)
		return
	}
	query := `SELECT customer, item, pieces, (cents / 100.0)::numeric(12,2)::text FROM till.orders WHERE id = $1`
	if s.generation == Successor {
		query = `SELECT customer, sku, quantity, total::text FROM sales.orders WHERE id = $1`
	}
	o := Order{ID: id, ServedBy: s.generation}
	err = s.pool.QueryRow(r.Context(), query, id).Scan(&o.Customer, &o.SKU, &o.Quantity, &o.Total)
	if errors.Is(err, pgx.ErrNoRows) {
		http.Error(w, "no such order", http.StatusNotFound)
		return
	}
	answer(w, err, o)
}

func read(w http.ResponseWriter, r *http.Request, into any) bool {
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<20)).Decode(into); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return false
	}
	return true
}

// answer answers with JSON. When the database does not let it work, as behind a fence, it asks to come again.
func answer(w http.ResponseWriter, err error, v any) {
	var pe *pgconn.PgError
	switch {
	case errors.Is(err, errNoKey):
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	case err != nil && (!errors.As(err, &pe) || pe.Code == "25006" || strings.HasPrefix(pe.Code, "57")):
		http.Error(w, "try again", http.StatusServiceUnavailable)
		return
	case err != nil:
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // a client that has gone away asks again
}
