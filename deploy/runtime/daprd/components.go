package main

import (
	"github.com/dapr/components-contrib/nameresolution/mdns"
	nrsqlite "github.com/dapr/components-contrib/nameresolution/sqlite"
	"github.com/dapr/components-contrib/state/in-memory"
	"github.com/dapr/components-contrib/state/postgresql/v1"
	postgresqlv2 "github.com/dapr/components-contrib/state/postgresql/v2"
	"github.com/dapr/components-contrib/state/redis"
	"github.com/dapr/components-contrib/state/sqlite"

	"github.com/dapr/dapr/pkg/components"
	"github.com/dapr/dapr/pkg/components/nameresolution"
	"github.com/dapr/dapr/pkg/components/state"
)

// registerComponents names what this daprd can use, under the names Dapr's own build gives them.
func registerComponents() {
	stores := state.DefaultRegistry
	stores.RegisterComponent(inmemory.NewInMemoryStateStore, "in-memory")
	stores.RegisterComponent(sqlite.NewSQLiteStateStore, "sqlite", "sqlite3")
	stores.RegisterComponent(redis.NewRedisStateStore, "redis")
	for _, name := range []string{"postgres", "postgresql"} {
		stores.RegisterComponentWithVersions(name, components.Versioning{
			Preferred: components.VersionConstructor{Version: "v2", Constructor: postgresqlv2.NewPostgreSQLStateStore},
			Others:    []components.VersionConstructor{{Version: "v1", Constructor: postgresql.NewPostgreSQLStateStore}},
			Default:   "v1",
		})
	}
	nameresolution.DefaultRegistry.RegisterComponent(mdns.NewResolver, "mdns")
	// Absent from Dapr's stable build; service invocation on one machine wants it.
	nameresolution.DefaultRegistry.RegisterComponent(nrsqlite.NewResolver, "sqlite")
}
