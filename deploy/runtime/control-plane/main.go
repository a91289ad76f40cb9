// The Dapr control plane that meshgate starts on one machine: sentry, placement and
// scheduler in one binary, told apart by the first argument. Nothing of Dapr is changed.
package main

import (
	"fmt"
	"os"

	placement "github.com/dapr/dapr/cmd/placement/app"
	scheduler "github.com/dapr/dapr/cmd/scheduler/app"
	sentry "github.com/dapr/dapr/cmd/sentry/app"
	"github.com/dapr/dapr/pkg/buildinfo"
)

func main() {
	services := map[string]func(){
		"sentry":    sentry.Run,
		"placement": placement.Run,
		"scheduler": scheduler.Run,
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
