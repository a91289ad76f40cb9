// The Dapr control plane that meshgate starts on one machine: sentry, placement and
// scheduler in one binary, told apart by the first argument. They are Dapr's own services with
// Dapr's own flags, put together here so that every listener stays on loopback (health.go).
package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/dapr/dapr/pkg/buildinfo"
	"github.com/dapr/kit/logger"
)

func main() {
	services := map[string]func(){
		"sentry":    runSentry,
		"placement": runPlacement,
		"scheduler": runScheduler,
		// The services themselves have no version flag that works for all three.
		"version": func() { fmt.Println(buildinfo.Version()) },
	}
	if len(os.Args) > 1 {
		if run, known := services[os.Args[1]]; known {
			// Each service parses os.Args[1:] on its own.
			os.Args = append([]string{os.Args[0] + " " + os.Args[1]}, os.Args[2:]...)
			run()
			return
		}
	}
	fmt.Fprintln(os.Stderr, "usage: dapr-control-plane sentry|placement|scheduler|version [flags]")
	os.Exit(2)
}

// check ends the process when something went wrong; being told to stop is nothing wrong.
func check(log logger.Logger, err error) {
	if err != nil && !errors.Is(err, context.Canceled) {
		log.Fatal(err)
	}
}
