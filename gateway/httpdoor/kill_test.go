package httpdoor

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ficus-migrate/ficus/buffer"
	"github.com/ficus-migrate/ficus/eventstore"
)

// asDoor makes the test binary be a door that takes commands, so that a test can kill it.
const asDoor = "FICUS_TEST_AS_DOOR"

// beDoor runs a door as the environment says, until it is killed.
func beDoor() {
	part := strings.Split(os.Getenv(asDoor), " ")
	store, err := eventstore.Open(eventstore.Config{Dir: part[0]})
	if err == nil {
		var d *Door
		d, err = New(Config{
			Listen: "127.0.0.1:0", Owner: oldSide, Servers: map[Backend]string{oldSide: part[1]},
			Commands: Commands{Log: buffer.CommandsConfig{
				Bucket: store.Bucket("commands"), BackoffMin: time.Millisecond, BackoffMax: 10 * time.Millisecond, Attempts: 1000,
			}},
		})
		if err == nil {
			go func() {
				<-d.Listening()
				fmt.Fprintln(os.Stdout, "http://"+d.Addr().String())
			}()
			err = d.Run(context.Background())
		}
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// startDoor returns the address of a door that runs in a process of its own.
func startDoor(t *testing.T, dir, server string) (*exec.Cmd, string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), self)
	cmd.Env = append(os.Environ(), asDoor+"="+dir+" "+server)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("the door did not start: %v", err)
	}
	return cmd, strings.TrimSpace(line)
}

// TestKill kills the door with clients in the middle of their commands, and a data server that loses answers
// and fails. What was acknowledged is done once, each line in its order, and the same key gets the same
// answer, whichever process gives it.
//
// It fails when load forgets commands. That Accept syncs is buffer.TestCrashes' to show: a killed process
// loses nothing that it has written.
func TestKill(t *testing.T) {
	t.Parallel()
	server, _ := twoServers(t)
	rng := rand.New(rand.NewPCG(1, 2))
	var mu sync.Mutex
	server.handle = func(w http.ResponseWriter, _ *http.Request, _ string) bool {
		mu.Lock()
		defer mu.Unlock()
		if rng.IntN(8) == 0 {
			w.WriteHeader(http.StatusInternalServerError)
			return true
		}
		return false
	}
	lives, each, lines := 4, 25, 4
	if os.Getenv("FICUS_TEST_LONG") != "" {
		lives, each, lines = 40, 400, 16
	}
	dir := t.TempDir()
	cmd, first := startDoor(t, dir, server.http.URL)
	url := make(chan string, 1) // the present address
	url <- first
	present := func() string {
		u := <-url
		url <- u
		return u
	}
	c := client(t)
	acked := make([][]string, lines)
	answers := make([]map[string]string, lines)
	var work sync.WaitGroup
	done := make(chan struct{})
	for i := range lines {
		answers[i] = map[string]string{}
		work.Go(func() {
			for n := 0; n < each; {
				key := fmt.Sprintf("line%d-%03d", i, n)
				o, err := try(t.Context(), c, http.MethodPost, present()+"/v1/commands",
					fmt.Sprintf(`{"key":%q,"order":"line%d","type":"count","payload":{"n":%d}}`, key, i, n), "Content-Type", "application/json", "Prefer", fmt.Sprint("wait=", n%2*5))
				switch {
				case err != nil: // killed; the same key again
					select {
					case <-time.After(5 * time.Millisecond):
					case <-t.Context().Done():
						return
					}
					continue
				case o.status == http.StatusCreated:
					answers[i][key] = o.body
				case o.status != http.StatusAccepted:
					t.Errorf("%s: %+v", key, o)
					return
				}
				acked[i] = append(acked[i], key)
				n++
			}
		})
	}
	go func() {
		work.Wait()
		close(done)
	}()
	for range lives {
		select {
		case <-done:
		case <-time.After(time.Duration(50+rng.IntN(200)) * time.Millisecond):
		}
		<-url
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		var next string
		cmd, next = startDoor(t, dir, server.http.URL)
		url <- next
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	<-done
	for i := range lines {
		for _, key := range acked[i] {
			o := post(t, c, present(), fmt.Sprintf(`{"key":%q,"order":"line%d","type":"count","payload":{"n":%s}}`, key, i, strings.TrimLeft(key[len(key)-3:], "0")+map[bool]string{true: "0"}[strings.HasSuffix(key, "000")]), "Prefer", "wait=30")
			if before, ok := answers[i][key]; o.status != http.StatusCreated || ok && before != o.body {
				t.Errorf("%s: %+v, before %q", key, o, before)
			}
		}
		server.mu.Lock()
		var line []string
		for _, key := range *server.order {
			if strings.HasPrefix(key, fmt.Sprintf("line%d-", i)) {
				line = append(line, key)
			}
		}
		server.mu.Unlock()
		if !slices.Equal(line, acked[i]) {
			t.Errorf("line %d was done as %v, acknowledged as %v", i, line, acked[i])
		}
	}
}
