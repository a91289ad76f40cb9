package main

import (
	"context"
	"errors"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/dapr/dapr/pkg/healthz"
	"github.com/dapr/kit/concurrency"
)

const (
	loopback         = "127.0.0.1"
	headerSeconds    = 5 * time.Second
	farewellDuration = 5 * time.Second
)

// serveHealth answers /healthz: 200 when every part is ready, else 503.
//
// Dapr's own health server has a flag for the address to listen on and ignores it (1.18.3), so it
// would be open to every interface. This one listens where it is told, on loopback if not told.
func serveHealth(health healthz.Healthz, address string, port int) concurrency.Runner {
	if address == "" {
		address = loopback
	}
	listening := health.AddTarget("healthz-server")
	return func(ctx context.Context) error {
		listener, err := net.Listen("tcp", net.JoinHostPort(address, strconv.Itoa(port)))
		if err != nil {
			return err
		}
		mux := http.NewServeMux()
		mux.HandleFunc("/healthz", func(answer http.ResponseWriter, _ *http.Request) {
			if !health.IsReady() {
				answer.WriteHeader(http.StatusServiceUnavailable)
			}
		})
		server := &http.Server{Handler: mux, ReadHeaderTimeout: headerSeconds}
		ended := make(chan error, 1)
		go func() { ended <- server.Serve(listener) }()
		listening.Ready()
		select {
		case err := <-ended:
			return err
		case <-ctx.Done():
		}
		farewell, cancel := context.WithTimeout(context.Background(), farewellDuration)
		defer cancel()
		err = server.Shutdown(farewell)
		if served := <-ended; !errors.Is(served, http.ErrServerClosed) {
			err = errors.Join(err, served)
		}
		return err
	}
}
