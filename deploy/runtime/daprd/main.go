// The Dapr sidecar with the few components that meshgate uses, on Dapr's own runtime package.
//
// Dapr's own command links every component there is (328 modules, 1.75 GB unpacked). This one links
// SQLite, PostgreSQL, Redis and in-memory state and two name resolvers. Flags, signals and exit codes
// are those of Dapr's command: the flags come from its own options package, and each is handed on.
package main

import (
	"context"
	"fmt"
	"os"

	"go.opencensus.io/stats/view"
	"go.uber.org/automaxprocs/maxprocs"

	"github.com/dapr/dapr/cmd/daprd/options"
	"github.com/dapr/dapr/pkg/buildinfo"
	"github.com/dapr/dapr/pkg/components/nameresolution"
	"github.com/dapr/dapr/pkg/components/state"
	"github.com/dapr/dapr/pkg/healthz"
	"github.com/dapr/dapr/pkg/metrics"
	"github.com/dapr/dapr/pkg/modes"
	"github.com/dapr/dapr/pkg/runtime"
	"github.com/dapr/dapr/pkg/runtime/registry"
	"github.com/dapr/dapr/pkg/security"
	"github.com/dapr/kit/concurrency"
	"github.com/dapr/kit/logger"
	"github.com/dapr/kit/signals"
)

var log = logger.NewLogger("dapr.runtime")

func main() {
	if _, err := maxprocs.Set(); err != nil {
		log.Warnf("GOMAXPROCS is left as it is: %v", err)
	}
	opts, err := options.New(os.Args[1:])
	if err != nil {
		log.Fatalf("flags: %v", err)
	}
	switch {
	case opts.RuntimeVersion:
		fmt.Println(buildinfo.Version())
		return
	case opts.BuildInfo:
		fmt.Printf("Version: %s\nGit Commit: %s\nGit Version: %s\n",
			buildinfo.Version(), buildinfo.Commit(), buildinfo.GitVersion())
		return
	case opts.WaitCommand:
		runtime.WaitUntilDaprOutboundReady(opts.DaprHTTPPort)
		return
	}
	opts.Logger.SetAppID(opts.AppID)
	if err := logger.ApplyOptionsToLoggers(&opts.Logger); err != nil {
		log.Fatal(err)
	}
	log.Infof("Starting Dapr Runtime -- version %s -- meshgate build", buildinfo.Version())
	registerComponents()
	state.DefaultRegistry.Logger = logger.NewLogger("dapr.contrib")
	nameresolution.DefaultRegistry.Logger = logger.NewLogger("dapr.contrib")
	serveUntilStopped(signals.Context(), opts)
	log.Info("Daprd shutdown gracefully")
}

// serveUntilStopped serves until SIGTERM or SIGINT ends ctx, or until the shutdown API ends the
// runtime. SIGHUP ends one round and begins the next, which reads resources and configuration anew.
func serveUntilStopped(ctx context.Context, opts *options.Options) {
	for round := range signals.OnHUP(ctx) {
		if err := serve(round, opts); err != nil {
			log.Fatalf("Fatal error from runtime: %s", err)
		}
		if round.Err() == nil || ctx.Err() != nil {
			return
		}
	}
}

// serve runs the sidecar until ctx ends: the security provider first, the runtime on top of it.
func serve(ctx context.Context, opts *options.Options) error {
	health := healthz.New()
	provider, err := security.New(ctx, security.Options{
		SentryAddress:           opts.SentryAddress,
		ControlPlaneTrustDomain: opts.ControlPlaneTrustDomain,
		ControlPlaneNamespace:   opts.ControlPlaneNamespace,
		TrustAnchors:            opts.TrustAnchors,
		AppID:                   opts.AppID,
		MTLSEnabled:             opts.EnableMTLS,
		Mode:                    modes.DaprMode(opts.Mode),
		Healthz:                 health,
		JwtAudiences:            opts.SentryRequestJwtAudiences,
	})
	if err != nil {
		return err
	}
	sidecar := func(ctx context.Context) error {
		handler, err := provider.Handler(ctx)
		if err != nil {
			return err
		}
		rt, err := runtime.FromConfig(ctx, config(opts, handler, health))
		if err != nil {
			return err
		}
		return rt.Run(ctx)
	}
	return concurrency.NewRunnerManager(provider.Run, sidecar).Run(ctx)
}

// config hands every flag on to the runtime.
func config(opts *options.Options, handler security.Handler, health healthz.Healthz) *runtime.Config {
	return &runtime.Config{
		ActorsDisseminationTimeout:    opts.ActorsDisseminationTimeout,
		ActorsService:                 opts.ActorsService,
		AllowedOrigins:                opts.AllowedOrigins,
		AppChannelAddress:             opts.AppChannelAddress,
		AppHealthCheckPath:            opts.AppHealthCheckPath,
		AppHealthProbeInterval:        opts.AppHealthProbeInterval,
		AppHealthProbeTimeout:         opts.AppHealthProbeTimeout,
		AppHealthThreshold:            opts.AppHealthThreshold,
		AppID:                         opts.AppID,
		AppMaxConcurrency:             opts.AppMaxConcurrency,
		AppProtocol:                   opts.AppProtocol,
		ApplicationPort:               opts.AppPort,
		AppSSL:                        opts.AppSSL,
		ComponentsPath:                opts.ComponentsPath,
		Config:                        opts.Config,
		ControlPlaneAddress:           opts.ControlPlaneAddress,
		DaprAPIGRPCPort:               opts.DaprAPIGRPCPort,
		DaprAPIListenAddresses:        opts.DaprAPIListenAddresses,
		DaprBlockShutdownDuration:     opts.DaprBlockShutdownDuration,
		DaprGracefulShutdownSeconds:   opts.DaprGracefulShutdownSeconds,
		DaprHTTPPort:                  opts.DaprHTTPPort,
		DaprInternalGRPCListenAddress: opts.DaprInternalGRPCListenAddress,
		DaprInternalGRPCPort:          opts.DaprInternalGRPCPort,
		DaprPublicListenAddress:       opts.DaprPublicListenAddress,
		DaprPublicPort:                opts.DaprPublicPort,
		DisableBuiltinK8sSecretStore:  opts.DisableBuiltinK8sSecretStore,
		DisableInitEndpoints:          opts.DisableInitEndpoints,
		EnableAPILogging:              opts.EnableAPILogging,
		EnableAppHealthCheck:          opts.EnableAppHealthCheck,
		EnableMTLS:                    opts.EnableMTLS,
		EnableProfiling:               opts.EnableProfiling,
		Healthz:                       health,
		HotReloadReconcileInterval:    opts.HotReloadReconcileInterval,
		MaxRequestSize:                opts.MaxRequestSize,
		Metrics: metrics.Options{
			Enabled:       opts.Metrics.Enabled(),
			Healthz:       health,
			ListenAddress: opts.Metrics.ListenAddress(),
			Log:           log,
			Meter:         view.NewMeter(),
			Namespace:     metrics.DefaultMetricNamespace,
			Port:          opts.Metrics.Port(),
		},
		Mode:             opts.Mode,
		ProfilePort:      opts.ProfilePort,
		ReadBufferSize:   opts.ReadBufferSize,
		Registry:         registry.NewOptions(), // Dapr's default registries: what registerComponents filled
		RemindersService: opts.RemindersService,
		ResourcesPath:    opts.ResourcesPath,
		SchedulerAddress: opts.SchedulerAddress,
		SchedulerStreams: opts.SchedulerJobStreams,
		Security:         handler,
		SentryAddress:    opts.SentryAddress,
		UnixDomainSocket: opts.UnixDomainSocket,
	}
}
