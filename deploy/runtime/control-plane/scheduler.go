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

// runScheduler keeps reminders in its etcd and hands them to sidecars. Not for Kubernetes.
func runScheduler() {
	log := logger.NewLogger("dapr.scheduler")
	opts, err := options.New(os.Args[1:])
	check(log, err)
	check(log, logger.ApplyOptionsToLoggers(&opts.Logger))
	check(log, monitoring.InitMetrics())

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
		WriteIdentityToFile:     &opts.IdentityDirectoryWrite,
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
		for ctx.Err() == nil { // it ends without an error when the set of schedulers changes
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
	check(log, concurrency.NewRunnerManager(
		serveHealth(health, opts.HealthzListenAddress, opts.HealthzPort),
		exporter.Start, identity.Run, serve,
	).Run(ctx))
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

		EtcdEmbed:                      opts.EtcdEmbed,
		EtcdDataDir:                    opts.EtcdDataDir,
		EtcdName:                       opts.ID,
		EtcdInitialCluster:             opts.EtcdInitialCluster,
		EtcdClientPort:                 opts.EtcdClientPort,
		EtcdClientListenAddress:        opts.EtcdClientListenAddress,
		EtcdClientEndpoints:            opts.EtcdClientEndpoints,
		EtcdClientUsername:             opts.EtcdClientUsername,
		EtcdClientPassword:             opts.EtcdClientPassword,
		EtcdSpaceQuota:                 opts.EtcdSpaceQuota,
		EtcdCompactionMode:             opts.EtcdCompactionMode,
		EtcdCompactionRetention:        opts.EtcdCompactionRetention,
		EtcdSnapshotCount:              opts.EtcdSnapshotCount,
		EtcdMaxSnapshots:               opts.EtcdMaxSnapshots,
		EtcdMaxWALs:                    opts.EtcdMaxWALs,
		EtcdBackendBatchLimit:          opts.EtcdBackendBatchLimit,
		EtcdBackendBatchInterval:       opts.EtcdBackendBatchInterval,
		EtcdMaxTxnOps:                  opts.EtcdMaxTxnOps,
		EtcdDefragThresholdMB:          opts.EtcdDefragThresholdMB,
		EtcdInitialElectionTickAdvance: opts.EtcdInitialElectionTickAdvance,
		EtcdMetrics:                    opts.EtcdMetrics,
	}
}
