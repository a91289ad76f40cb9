package main

import (
	"context"
	"os"

	"github.com/dapr/dapr/cmd/placement/options"
	"github.com/dapr/dapr/pkg/healthz"
	"github.com/dapr/dapr/pkg/metrics"
	"github.com/dapr/dapr/pkg/modes"
	"github.com/dapr/dapr/pkg/placement"
	"github.com/dapr/dapr/pkg/placement/monitoring"
	"github.com/dapr/dapr/pkg/security"
	"github.com/dapr/kit/concurrency"
	"github.com/dapr/kit/logger"
	"github.com/dapr/kit/signals"
)

// runPlacement knows where each actor lives. Its table is not served over HTTP.
func runPlacement() {
	log := logger.NewLogger("dapr.placement")
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
		TrustAnchorsFile:        &opts.TrustAnchorsFile,
		AppID:                   "dapr-placement",
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
		ListenAddress: opts.PlacementListenAddress,
		Healthz:       health,
	})
	serve := func(ctx context.Context) error {
		handler, err := identity.Handler(ctx)
		if err != nil {
			return err
		}
		service, err := placement.New(placement.Options{
			NodeID:                    opts.RaftID,
			Port:                      opts.PlacementPort,
			ListenAddress:             opts.PlacementListenAddress,
			Security:                  handler,
			Healthz:                   health,
			KeepAliveTime:             opts.KeepAliveTime,
			KeepAliveTimeout:          opts.KeepAliveTimeout,
			ReplicationFactor:         int64(opts.ReplicationFactor),
			Peers:                     opts.RaftPeers,
			DisseminateTimeout:        opts.DisseminateTimeout,
			DisseminateCoalesceWindow: opts.DisseminateCoalesceWindow,
		})
		if err != nil {
			return err
		}
		return service.Run(ctx)
	}
	check(log, concurrency.NewRunnerManager(
		serveHealth(health, opts.HealthzListenAddress, opts.HealthzPort),
		exporter.Start, identity.Run, serve,
	).Run(ctx))
}
