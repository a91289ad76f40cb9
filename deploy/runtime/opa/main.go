// Open Policy Agent as meshgate starts it: the released command, unchanged.
package main

import (
	"errors"
	"os"

	"github.com/open-policy-agent/opa/cmd"
)

func main() {
	err := cmd.RootCommand.Execute()
	var exit *cmd.ExitError
	switch {
	case err == nil:
	case errors.As(err, &exit):
		os.Exit(exit.Exit)
	default:
		os.Exit(1)
	}
}
