package main

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/ficus-migrate/ficus/gateway"
	"github.com/ficus-migrate/ficus/internal/pg"
	"github.com/ficus-migrate/ficus/migrate"
	"github.com/ficus-migrate/ficus/migrate/router"
	"github.com/ficus-migrate/ficus/migrate/router/routertest"
)

// TestGatewayConforms holds the gateway, as the workflow drives it, to what plan prints of it.
func TestGatewayConforms(t *testing.T) {
	t.Parallel()
	routertest.Conform(t, func(t testing.TB) routertest.Subject {
		t.Helper()
		_, places := routertest.Databases(t)
		g, err := gateway.New(gateway.Config{
			Listen: "127.0.0.1:0", ReadListen: "127.0.0.1:0", Owner: gateway.Backend(migrate.Source), Epoch: 1,
			Backends: map[gateway.Backend]pg.DSN{
				gateway.Backend(migrate.Source): places[migrate.Source], gateway.Backend(migrate.Target): places[migrate.Target],
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		over := errors.New("test is over")
		ctx, cancel := context.WithCancelCause(context.WithoutCancel(t.Context()))
		done := make(chan error, 1)
		go func() { done <- g.Run(ctx) }() // waited for by the cleanup
		t.Cleanup(func() {
			cancel(over)
			if err := <-done; !errors.Is(err, over) {
				t.Errorf("gateway: %v", err)
			}
		})
		<-g.Listening()
		database := places[migrate.Source].Database()
		return routertest.Subject{
			Router: routerAdapter{g}, Guarantees: router.Guarantees(router.KindGateway, router.Options{Reads: true}),
			Write: fmt.Sprintf("postgres://postgres@%s/%s?sslmode=disable", g.Addr(), database),
			Read:  fmt.Sprintf("postgres://postgres@%s/%s?sslmode=disable", g.ReadAddr(), database),
		}
	})
}
