package main

import (
	"os"
	"path/filepath"

	"github.com/dapr/dapr/cmd/sentry/options"
	"github.com/dapr/dapr/pkg/healthz"
	"github.com/dapr/dapr/pkg/metrics"
	"github.com/dapr/dapr/pkg/modes"
	"github.com/dapr/dapr/pkg/sentry"
	"github.com/dapr/dapr/pkg/sentry/config"
	"github.com/dapr/dapr/pkg/sentry/monitoring"
	"github.com/dapr/kit/concurrency"
	"github.com/dapr/kit/logger"
	"github.com/dapr/kit/signals"
)

// runSentry signs certificates. Left out of Dapr's command: JWTs, OIDC, Kubernetes, and taking up
// an issuer that is exchanged while it runs (here root and issuer stay, and a new one needs a new
// start).
func runSentry() {
	log := logger.NewLogger("dapr.sentry")
	opts := options.New(os.Args[1:])
	check(log, opts.Validate())
	check(log, logger.ApplyOptionsToLoggers(&opts.Logger))
	check(log, monitoring.InitMetrics())

	settings, err := config.FromConfigName(opts.ConfigName, opts.Mode)
	check(log, err)
	settings.RootCertPath = credential(opts, opts.X509.RootCAFilename)
	settings.IssuerCertPath = credential(opts, opts.X509.IssuerCertFilename)
	settings.IssuerKeyPath = credential(opts, opts.X509.IssuerKeyFilename)
	settings.TrustDomain = opts.TrustDomain
	settings.ListenAddress = opts.ListenAddress
	settings.Port = opts.Port
	settings.Mode = modes.DaprMode(opts.Mode)

	health := healthz.New()
	ctx := signals.Context()
	exporter := metrics.New(metrics.Options{
		Log:           log,
		Enabled:       opts.Metrics.Enabled(),
		Namespace:     metrics.DefaultMetricNamespace,
		Port:          opts.Metrics.Port(),
		ListenAddress: opts.ListenAddress,
		Healthz:       health,
	})
	authority, err := sentry.New(ctx, sentry.Options{Config: settings, Healthz: health})
	check(log, err)
	check(log, concurrency.NewRunnerManager(
		serveHealth(health, opts.HealthzListenAddress, opts.HealthzPort),
		exporter.Start, authority.Start,
	).Run(ctx))
}

func credential(opts *options.Options, name string) string {
	if filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(opts.IssuerCredentialsPath, name)
}
