package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/dapr/dapr/cmd/scheduler/options"
	"github.com/dapr/dapr/pkg/healthz"
	"github.com/dapr/dapr/pkg/security"
	"github.com/dapr/kit/logger"
	"go.etcd.io/bbolt"
	bbolterrors "go.etcd.io/bbolt/errors"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3rpc"
)

const (
	startLimit    = 60 * time.Second // the plane gives a service less than that to become ready
	defragPause   = 10 * time.Minute // as often as Dapr looks
	slowApply     = 5 * time.Second  // as Dapr: below it etcd logs each write of a slow disk
	socketEntropy = 16               // bytes
	lockLimit     = 5 * time.Second  // a killed process is gone long before
	lockPause     = 50 * time.Millisecond

	// The only member has nobody to wait for before it elects itself; etcd asks for five ticks at least.
	tickMilliseconds     = 20
	electionMilliseconds = 100
)

var errStopped = errors.New("the scheduler's store ended by itself")

// store is the Scheduler's etcd, for this process alone.
//
// The one that Dapr embeds listens on TCP and asks nobody who they are (1.18.3): whoever may
// connect reads and writes the reminders of all apps, and it has no setting for a certificate. This
// one has neither a client port nor a peer port. It serves an abstract socket with a name that is
// drawn at each start, and takes connections of its own process only, which the kernel tells. The
// Scheduler uses it as if it was an etcd elsewhere.
type store struct {
	etcd     *embed.Etcd
	lock     *os.File
	endpoint string
	failed   chan error
	stop     func()
}

// openStore starts etcd on the Scheduler's folder; it answers when this returns. Close it last.
func openStore(ctx context.Context, opts *options.Options, health healthz.Healthz) (*store, error) {
	ready := health.AddTarget("scheduler-store")
	config, err := storeConfig(opts)
	if err != nil {
		return nil, err
	}
	lock, err := lockFolder(ctx, filepath.Dir(config.Dir))
	if err != nil {
		return nil, err
	}
	etcd, err := startEtcd(config)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("starting etcd on %s: %w", config.Dir, err), lock.Close())
	}
	select {
	case <-etcd.Server.ReadyNotify():
	case <-etcd.Server.StopNotify():
		err = errStopped
	case <-time.After(startLimit):
		err = fmt.Errorf("etcd on %s was not ready within %s", config.Dir, startLimit)
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err == nil {
		err = endLeases(ctx, etcd.Server)
	}
	var listener net.Listener
	if err == nil {
		listener, err = listenToMyself()
	}
	if err != nil {
		etcd.Close()
		return nil, errors.Join(err, lock.Close())
	}
	service := v3rpc.Server(etcd.Server, nil, nil)
	opened := &store{
		etcd:     etcd,
		lock:     lock,
		endpoint: "unix:" + listener.Addr().String(),
		failed:   make(chan error, 1),
		stop:     service.Stop,
	}
	go func() { opened.failed <- service.Serve(listener) }()
	ready.Ready()
	return opened, nil
}

// storeConfig is etcd with one member, with the limits that Dapr's flags name.
func storeConfig(opts *options.Options) (*embed.Config, error) {
	pause, err := time.ParseDuration(opts.EtcdBackendBatchInterval)
	if err != nil {
		return nil, fmt.Errorf("--etcd-backend-batch-interval: %w", err)
	}
	config := embed.NewConfig()
	config.Name = opts.ID
	config.Dir = filepath.Join(opts.EtcdDataDir, security.CurrentNamespace()+"-"+opts.ID, "dapr-0.1")
	config.ListenClientUrls, config.ListenPeerUrls = nil, nil
	config.InitialCluster = config.InitialClusterFromName(config.Name)
	config.LogLevel = "info"
	config.TickMs, config.ElectionMs = tickMilliseconds, electionMilliseconds

	config.QuotaBackendBytes = opts.EtcdSpaceQuota
	config.AutoCompactionMode = opts.EtcdCompactionMode
	config.AutoCompactionRetention = opts.EtcdCompactionRetention
	config.SnapshotCount = opts.EtcdSnapshotCount
	config.MaxSnapFiles = opts.EtcdMaxSnapshots
	config.MaxWalFiles = opts.EtcdMaxWALs
	config.BackendBatchLimit = opts.EtcdBackendBatchLimit
	config.BackendBatchInterval = pause
	config.MaxTxnOps = opts.EtcdMaxTxnOps
	config.MaxRequestBytes = math.MaxInt32
	config.ExperimentalWarningApplyDuration = slowApply
	config.ExperimentalBootstrapDefragThresholdMegabytes = opts.EtcdDefragThresholdMB
	config.Metrics = opts.EtcdMetrics
	return config, nil
}

// lockFolder makes this process the only one on the Scheduler's folder, until the file is closed. etcd's own
// lock would have a second one wait in silence and deaf to signals; its predecessor gets a moment to be gone.
func lockFolder(ctx context.Context, folder string) (*os.File, error) {
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return nil, fmt.Errorf("the scheduler's folder: %w", err)
	}
	file, err := os.OpenFile(filepath.Join(folder, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("the scheduler's folder: %w", err)
	}
	limit := time.Now().Add(lockLimit)
	for {
		err = syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return file, nil
		}
		if errors.Is(err, syscall.EWOULDBLOCK) && time.Now().After(limit) {
			err = fmt.Errorf("another scheduler works on %s: end it first", folder)
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			return nil, errors.Join(err, file.Close())
		}
		select {
		case <-time.After(lockPause):
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), file.Close())
		}
	}
}

// startEtcd is embed.StartEtcd, with an error where that panics: on damaged files, in part in a goroutine of
// its own, so the database is opened here before.
func startEtcd(config *embed.Config) (etcd *embed.Etcd, err error) {
	defer func() {
		if cause := recover(); cause != nil {
			err = damaged(cause)
		}
	}()
	path := filepath.Join(config.Dir, "member", "snap", "db")
	if _, missing := os.Stat(path); missing == nil {
		database, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: lockLimit})
		if errors.Is(err, bbolterrors.ErrTimeout) {
			return nil, errors.New("another process has its database open: end that first")
		}
		if errors.Is(err, bbolterrors.ErrInvalid) || errors.Is(err, bbolterrors.ErrChecksum) ||
			errors.Is(err, bbolterrors.ErrVersionMismatch) {
			return nil, damaged(err)
		}
		if err != nil {
			return nil, err
		}
		written, err := wasWritten(database)
		if err := errors.Join(err, database.Close()); err != nil {
			return nil, err
		}
		// etcd would begin a new log, and pass over all that is written until that is as long as the old one.
		logs, err := filepath.Glob(filepath.Join(config.Dir, "member", "wal", "*.wal"))
		if err != nil {
			return nil, err
		}
		if written && len(logs) == 0 {
			return nil, damaged("its write-ahead log is gone")
		}
	}
	return embed.StartEtcd(config)
}

// wasWritten tells a database in use from one whose first start was cut short, before there was a log.
func wasWritten(database *bbolt.DB) (bool, error) {
	written := false
	err := database.View(func(transaction *bbolt.Tx) error {
		if meta := transaction.Bucket([]byte("meta")); meta != nil {
			index := meta.Get([]byte("consistent_index"))
			written = len(bytes.Trim(index, "\x00")) > 0
		}
		return nil
	})
	return written, err
}

func damaged(cause any) error {
	return fmt.Errorf("the folder is damaged (%v): put a copy of it in its place, or move it away and lose "+
		"the timers and reminders in it", cause)
}

// endLeases ends what an earlier Scheduler still held when it was killed, above all its place among the
// schedulers, which would keep this one waiting for 20 s. Nobody else can be alive: the folder is locked.
func endLeases(ctx context.Context, server *etcdserver.EtcdServer) error {
	held, err := server.LeaseLeases(ctx, &etcdserverpb.LeaseLeasesRequest{})
	if err != nil {
		return fmt.Errorf("reading the leases of an earlier scheduler: %w", err)
	}
	for _, lease := range held.Leases {
		if _, err := server.LeaseRevoke(ctx, &etcdserverpb.LeaseRevokeRequest{ID: lease.ID}); err != nil {
			return fmt.Errorf("ending a lease of an earlier scheduler: %w", err)
		}
	}
	return nil
}

// use makes the Scheduler a client of this store.
func (s *store) use(opts *options.Options) {
	opts.EtcdEmbed = false
	opts.EtcdClientEndpoints = []string{s.endpoint}
}

// keep defragments now and then. It returns when the store failed, or at the context's end.
func (s *store) keep(ctx context.Context, log logger.Logger) error {
	tick := time.NewTicker(defragPause)
	defer tick.Stop()
	for {
		select {
		case err := <-s.failed:
			return fmt.Errorf("the scheduler's store: %w", err)
		case <-s.etcd.Server.StopNotify(): // etcd's own channel of errors is about ports, and there are none
			return errStopped
		case <-tick.C:
			backend := s.etcd.Server.Backend()
			if backend.Size() < 2*backend.SizeInUse() {
				continue
			}
			if err := backend.Defrag(); err != nil {
				log.Errorf("defragmenting the scheduler's store: %v", err)
			}
		case <-ctx.Done():
			return nil
		}
	}
}

func (s *store) close() {
	s.stop()
	s.etcd.Close()
	_ = s.lock.Close() // ends with the process in any case
}

// ownListener accepts connections that this process made, and closes all others unread.
type ownListener struct{ *net.UnixListener }

func listenToMyself() (net.Listener, error) {
	drawn := make([]byte, socketEntropy)
	if _, err := rand.Read(drawn); err != nil {
		return nil, err
	}
	address := &net.UnixAddr{Name: "@meshgate-scheduler-" + hex.EncodeToString(drawn), Net: "unix"}
	listener, err := net.ListenUnix("unix", address)
	if err != nil {
		return nil, err
	}
	return ownListener{listener}, nil
}

// Accept gives the next connection of this process.
func (l ownListener) Accept() (net.Conn, error) {
	for {
		connection, err := l.AcceptUnix()
		if err != nil {
			return nil, err
		}
		peer, err := peerOf(connection)
		if err == nil && int(peer.Pid) == os.Getpid() {
			return connection, nil
		}
		_ = connection.Close() // somebody else's: what closing it says does not matter
	}
}

// peerOf asks the kernel which process connected.
func peerOf(connection *net.UnixConn) (*syscall.Ucred, error) {
	raw, err := connection.SyscallConn()
	if err != nil {
		return nil, err
	}
	var peer *syscall.Ucred
	var asked error
	err = raw.Control(func(descriptor uintptr) {
		peer, asked = syscall.GetsockoptUcred(int(descriptor), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	})
	return peer, errors.Join(err, asked)
}
