package main

import (
	"context"
	"os"

	"github.com/dapr/dapr/cmd/scheduler/options"
	"github.com/dapr/dapr/pkg/healthz"
	"github.com/dapr/dapr/pkg/metrics"
	"github.com/dapr/dapr/pkg/modes"
	"github.com/dapr/dapr/pkg/scheduler/monitoring"
	"github.com/dapr/dapr/pkg/scheduler/server"
	"github.com/dapr/dapr/pkg/security"
	"github.com/dapr/kit/concurrency"
	"github.com/dapr/kit/logger"
	"github.com/dapr/kit/signals"
)

// runScheduler keeps reminders in an etcd of its own (store.go) and hands them to sidecars. Not for Kubernetes.
func runScheduler() {
	log := logger.NewLogger("dapr.scheduler")
	opts, err := options.New(os.Args[1:])
	check(log, err)
	check(log, logger.ApplyOptionsToLoggers(&opts.Logger))
	check(log, monitoring.InitMetrics())
	if !opts.EtcdEmbed {
		log.Fatal("--etcd-embed=false: this scheduler keeps its own store (see store.go) and has no use for another")
	}

	health := healthz.New()
	ctx := signals.Context()
	identity, err := security.New(ctx, security.Options{
		SentryAddress:           opts.SentryAddress,
		ControlPlaneTrustDomain: opts.TrustDomain,
		ControlPlaneNamespace:   security.CurrentNamespace(),
		TrustAnchorsFile:        opts.TrustAnchorsFile,
		AppID:                   "dapr-scheduler",
		MTLSEnabled:             opts.TLSEnabled,
		Mode:                    modes.DaprMode(opts.Mode),
		Healthz:                 health,
	})
	check(log, err)
	exporter := metrics.New(metrics.Options{
		Log:           log,
		Enabled:       opts.Metrics.Enabled(),
		Namespace:     metrics.DefaultMetricNamespace,
		Port:          opts.Metrics.Port(),
		ListenAddress: opts.ListenAddress,
		Healthz:       health,
	})
	serve := func(ctx context.Context) error {
		handler, err := identity.Handler(ctx)
		if err != nil {
			return err
		}
		opened, err := openStore(ctx, opts, health)
		if err != nil {
			return err
		}
		defer opened.close() // after the service: it gives its place up in the store when it ends
		opened.use(opts)
		return concurrency.NewRunnerManager(
			func(ctx context.Context) error { return opened.keep(ctx, log) },
			func(ctx context.Context) error { return serveJobs(ctx, opts, handler, health) },
		).Run(ctx)
	}
	check(log, concurrency.NewRunnerManager(
		serveHealth(health, opts.HealthzListenAddress, opts.HealthzPort),
		exporter.Start, identity.Run, serve,
	).Run(ctx))
}

// serveJobs is the service; it begins again when it ends without an error, as when the set of schedulers changes.
func serveJobs(
	ctx context.Context, opts *options.Options, handler security.Handler, health healthz.Healthz,
) error {
	for ctx.Err() == nil {
		service, err := server.New(ctx, serverOptions(opts, handler, health))
		if err != nil {
			return err
		}
		if err := service.Run(ctx); err != nil {
			return err
		}
	}
	return ctx.Err()
}

func serverOptions(opts *options.Options, handler security.Handler, health healthz.Healthz) server.Options {
	return server.Options{
		Port:                      opts.Port,
		ListenAddress:             opts.ListenAddress,
		OverrideBroadcastHostPort: opts.OverrideBroadcastHostPort,
		Mode:                      modes.DaprMode(opts.Mode),
		Security:                  handler,
		Healthz:                   health,
		Workers:                   opts.Workers,

		EtcdName:            opts.ID,
		EtcdEmbed:           opts.EtcdEmbed,
		EtcdClientEndpoints: opts.EtcdClientEndpoints,
	}
}
