//! The wiring: the one place that knows all rooms. It opens the listeners, starts everything in order, and at the end
//! stops it in order, so that clients and backends have moved on before their connections go.

use std::{collections::BTreeMap, io, net::SocketAddr, sync::Arc};

use lookaside_core::{
    event::{Event, Override},
    model::SourceId,
};
use lookaside_proto::v1::{balancer_server, reporter_server};
use tokio::{
    net::{TcpListener, TcpSocket},
    task::{JoinHandle, JoinSet},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::service::Routes;
use tonic_health::{ServingStatus, server::HealthReporter};

use crate::{
    accept::{self, Acceptor, Ceiling, Offer},
    admin::{self, Token},
    config::{Code, Config, Listen, Live, exposed_reason},
    driver::{self, Handle},
    frontend::{
        clients::Clients,
        cohorts::Cohorts,
        pick::{self, Admission, Pick, Shared},
    },
    limits::{
        CONNECTIONS_WAITING_MAX, METRICS_CONNECTIONS_MAX, METRICS_CONNECTIONS_PER_PEER_MAX, SMALL_REQUEST_BYTES_MAX,
        STOP_WAIT_MAX,
    },
    signal::{Holders, probe, report},
    source::{Source as _, dns::Names, file::File},
    store::{self, InUse, Lock, Store},
    telemetry::{
        self, PICK_STREAMS, PICK_STREAMS_UNSYNCED,
        gauges::{self, Numbers},
        page::{self, Page},
    },
    tls::{self, Certificates},
};

/// What `grpc.health.v1` answers for, besides the server as a whole.
const HEALTH_NAMES: [&str; 3] = ["", balancer_server::SERVICE_NAME, reporter_server::SERVICE_NAME];

/// Why a balancer did not start or did not end well.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An address cannot be listened on.
    #[error("cannot listen on {address} for the {listener} listener: {reason}")]
    Listen {
        /// client, admin or metrics.
        listener: &'static str,
        /// As configured.
        address: SocketAddr,
        /// The system's words.
        reason: io::Error,
    },
    /// A listener that others reach, without TLS and without a word that this is meant.
    #[error("{} [{}]", exposed_reason(.listener, *.address), Code::Exposed.name())]
    Exposed {
        /// client or admin.
        listener: &'static str,
        /// As configured.
        address: SocketAddr,
    },
    /// Files that make a listener or a check secure are of no use.
    #[error("{what}: {reason}")]
    Secrets {
        /// What they are for.
        what: String,
        /// What is wrong with them.
        reason: lookaside_tls::Error,
    },
    /// There is no room for the services of the configuration beside what is known from the last start.
    #[error("the services of the configuration are not taken: {reason}")]
    Services {
        /// What is too much.
        reason: String,
    },
    /// The data directory is another balancer's.
    #[error(transparent)]
    InUse(#[from] InUse),
    /// A part of the balancer failed; the log has its words.
    #[error("the balancer failed: {0}")]
    Failed(#[from] tokio::task::JoinError),
}

/// A balancer at work.
#[derive(Debug)]
pub struct Running {
    /// Where it listens, ports chosen.
    pub addresses: Listen,
    task: JoinHandle<Result<(), Error>>,
}

impl Running {
    /// Waits until it has stopped, which it does within `limits.drain_deadline` and some seconds after its token was
    /// cancelled, also when a disk hangs.
    ///
    /// # Errors
    /// [`Error::Failed`] when it stopped by a fault of its own.
    pub async fn finished(self) -> Result<(), Error> {
        self.task.await?
    }
}

/// Starts a balancer; it is ready when this returns. Cancel `shutdown` to stop it: readiness goes first, then clients
/// and backends are told to move on, then connections are closed.
///
/// # Errors
/// [`Error`] says what is in the way; nothing is left running then.
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<Running, Error> {
    let Secrets { certificates, token } = secrets(&config)?;
    let lock = config.data_dir.as_deref().map(Lock::take).transpose()?;
    let (client, client_address) = listen("client", config.listen.client).await?;
    let (admin, admin_address) = listen("admin", config.listen.admin).await?;
    let (metrics, metrics_address) = listen("metrics", config.listen.metrics).await?;
    let addresses = Listen { client: client_address, admin: admin_address, metrics: metrics_address };
    let recorder = telemetry::install();
    for (listener, address, tls) in
        [("client", addresses.client, &config.security.client), ("admin", addresses.admin, &config.security.admin)]
    {
        if tls.is_none() && !address.ip().to_canonical().is_loopback() {
            tracing::warn!(listener, %address, "in plaintext where others reach it, as listen.allow_plaintext says: everybody on the way reads along");
        }
    }
    let tokens = Tokens::default();
    let rooms = TaskTracker::new();

    let (driver, driving) = start_driver(&config, &tokens, &rooms);
    let source = SourceId::parse("file").expect("a name without white space");
    let (in_force, live) = Live::start(config.clone(), driver::unix_ms());
    let file = File::new(source, in_force);
    // Before anybody can ask, so that what is configured is never unknown.
    if let Err(reason) = file.begin(&driver).await {
        tokens.stop.cancel();
        let driven = driving.await;
        tokens.disk.cancel();
        rooms.close();
        rooms.wait().await;
        driven?;
        return Err(Error::Services { reason: reason.to_string() });
    }
    let mut names = Names::new(driver.clone(), tokens.stop.clone(), rooms.clone());
    names.apply(&config.services).await;
    // Every source there is has said by now what it will speak of.
    driver.tell(Event::SourcesNamed).await;
    rooms.spawn(file.follow(driver.clone(), tokens.stop.clone()));
    rooms.spawn(names.keep_up(live.clone()));
    let mut vital = JoinSet::new();
    vital.spawn(probe::run(driver.clone(), config.limits.checks_at_once, tokens.stop.clone()));
    let cohorts = Arc::new(Cohorts::new(driver.clone()));
    vital.spawn(Arc::clone(&cohorts).follow(tokens.stop.clone()));
    let clients = Arc::new(Clients::new());

    let health = HealthReporter::new();
    for name in HEALTH_NAMES {
        health.set_service_status(name, ServingStatus::Serving).await;
    }
    let reports = reports(&live, addresses, &driver, &clients, &tokens);
    let report_streams = reports.streams();
    let shared = Shared {
        driver: driver.clone(),
        cohorts,
        clients: Arc::clone(&clients),
        admission: Admission::new(),
        draining: tokens.draining.clone(),
    };
    let picks = base(&health).add_service(Pick::new(shared)).add_service(reports.into_server());
    let watched = token.clone();
    let orders = admin::Service::new(admin::Parts {
        driver: driver.clone(),
        clients: Arc::clone(&clients),
        node: config.node.id.clone(),
        live: live.clone(),
        addresses,
        certificates: certificates.clone(),
        token,
        report_streams: Box::new(move || report_streams.open()),
        draining: tokens.draining.clone(),
    });
    let orders = base(&health).add_service(orders.into_server());

    let ceiling = Ceiling::new(live.clone());
    rooms.spawn(Arc::clone(&ceiling).watch(tokens.stop.clone()));
    let listeners = TaskTracker::new();
    let limits = config.limits;
    // Operators get in whatever happens.
    for (name, listener, routes, ceiling, many) in
        [("client", client, picks, Some(ceiling), Some(pick::METHOD)), ("admin", admin, orders, None, None)]
    {
        let acceptor = Acceptor::new(name, listener, limits.connections, limits.connections_per_peer);
        let tls = certificates.of(name);
        let offer =
            Offer { routes: routes.prepare(), tls, live: live.clone(), ceiling, many, stop: tokens.leave.clone() };
        listeners.spawn(accept::serve(acceptor, offer));
    }
    listeners.close();
    rooms.spawn(certificates.clone().watch(tokens.stop.clone()));
    if let Some(token) = watched {
        rooms.spawn(token.watch(tokens.stop.clone()));
    }
    let numbers = move || {
        let mut numbers = numbers(&driver, &clients);
        numbers.extend(certificates.numbers());
        numbers
    };
    let page = Arc::new(Page::new(recorder.clone(), numbers, tokens.draining.clone()));
    let acceptor = Acceptor::new("metrics", metrics, METRICS_CONNECTIONS_MAX, METRICS_CONNECTIONS_PER_PEER_MAX);
    rooms.spawn(page::serve(acceptor, page, tokens.stop.clone()));
    rooms.spawn(page::upkeep(recorder, tokens.stop.clone()));
    rooms.close();
    tracing::info!(client = %addresses.client, admin = %addresses.admin, metrics = %addresses.metrics, "ready");
    let ending = until(shutdown, driving, vital, tokens, health, listeners, rooms);
    let task = tokio::spawn(async move {
        let _lock = lock;
        ending.await
    });
    Ok(Running { addresses, task })
}

/// What is told to whom when the balancer stops, in this order.
#[derive(Default)]
struct Tokens {
    /// Streams: say where to go, and end.
    draining: CancellationToken,
    /// Listeners: close, and tell connections to go away.
    leave: CancellationToken,
    /// Everything else.
    stop: CancellationToken,
    /// The disk has what the driver told last.
    disk: CancellationToken,
}

/// Waits for the end, and brings it about.
async fn until(
    shutdown: CancellationToken,
    mut driving: JoinHandle<()>,
    mut vital: JoinSet<()>,
    tokens: Tokens,
    health: HealthReporter,
    listeners: TaskTracker,
    rooms: TaskTracker,
) -> Result<(), Error> {
    let (mut driven, mut others) = (None, Ok(()));
    tokio::select! {
        () = shutdown.cancelled() => {}
        // They end on their own only by a panic; without them lists would stay as they are for ever, which looks healthy.
        ended = &mut driving => driven = Some(ended),
        Some(ended) = vital.join_next() => others = ended,
    }
    tracing::info!("draining");
    for name in HEALTH_NAMES {
        health.set_service_status(name, ServingStatus::NotServing).await;
    }
    tokens.draining.cancel();
    tokens.leave.cancel();
    listeners.wait().await;
    tokens.stop.cancel();
    while let Some(ended) = vital.join_next().await {
        others = others.and(ended);
    }
    let driven = match driven {
        Some(ended) => ended,
        None => driving.await,
    };
    tokens.disk.cancel();
    if timeout(STOP_WAIT_MAX, rooms.wait()).await.is_err() {
        tracing::error!(
            tasks = rooms.len(),
            "stopped without waiting any longer: a disk hangs, and may not have what was told last"
        );
    }
    driven?;
    others?;
    tracing::info!("stopped");
    Ok(())
}

/// What is read from files that nobody else is to see.
struct Secrets {
    certificates: Certificates,
    token: Option<Token>,
}

/// Reads them, before anything is opened: a balancer that is less secure than it was told to be does not start.
/// Opens the files of certificates, keys and tokens that a configuration names, as a start would, and starts nothing.
///
/// # Errors
/// [`Error::Exposed`] and [`Error::Secrets`], as at a start.
pub fn check_files(config: &Config) -> Result<(), Error> {
    secrets(config).map(drop)
}

fn secrets(config: &Config) -> Result<Secrets, Error> {
    let security = &config.security;
    if let Some((listener, address)) = security.exposed(&config.listen).next() {
        return Err(Error::Exposed { listener, address });
    }
    let failed = |what: String| |reason| Error::Secrets { what, reason };
    let certificates =
        Certificates::load(security).map_err(|(listener, reason)| failed(format!("tls.{listener}"))(reason))?;
    let token = security.token.as_ref().map(Token::load).transpose().map_err(failed("admin.token_file".to_owned()))?;
    tls::try_endpoints(config).map_err(|(what, reason)| Error::Secrets { what, reason })?;
    Ok(Secrets { certificates, token })
}

/// Starts the driver with what outlived the last start. Without it it starts all the same, and says so.
fn start_driver(config: &Config, tokens: &Tokens, rooms: &TaskTracker) -> (Handle, JoinHandle<()>) {
    let mut start = driver::Start {
        epoch: rand::random(),
        defaults: config.defaults.clone(),
        overrides: Vec::new(),
        kept: None,
        store: None,
    };
    if let Some(dir) = &config.data_dir {
        let loaded = store::load(dir, driver::unix_ms());
        let store = Store::start(dir, &config.node.id, loaded.refused, rooms, &tokens.disk);
        // Written at once, so that a disk that takes nothing is known before an order relies on it.
        let words = loaded.overrides.iter().map(|word| Override { remaining: None, ..word.clone() });
        store.save_overrides(words.collect());
        (start.overrides, start.kept, start.store) = (loaded.overrides, loaded.snapshot, Some(store));
    }
    driver::start(start, tokens.stop.clone())
}

fn reports(
    live: &Live,
    addresses: Listen,
    driver: &Handle,
    clients: &Arc<Clients>,
    tokens: &Tokens,
) -> report::Service {
    let rules = report::Rules { live: live.clone(), own: vec![addresses.client, addresses.admin, addresses.metrics] };
    let changed = clients.changed();
    let clients = Arc::clone(clients);
    let holders = Holders { holds: Arc::new(move |service, address| clients.holds(service, address)), changed };
    report::Service::new(driver.clone(), rules, holders, tokens.draining.clone())
}

/// Health and reflection, which every gRPC listener has.
fn base(health: &HealthReporter) -> Routes {
    use tonic_reflection::server::Builder;
    let reflection = || {
        Builder::configure()
            .register_encoded_file_descriptor_set(lookaside_proto::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let health = tonic_health::server::HealthService::from_health_reporter(health.clone());
    let health = tonic_health::pb::health_server::HealthServer::new(health);
    let v1 = reflection().build_v1().expect("our descriptors are well-formed");
    let v1alpha = reflection().build_v1alpha().expect("our descriptors are well-formed");
    Routes::new(health.max_decoding_message_size(SMALL_REQUEST_BYTES_MAX))
        .add_service(v1.max_decoding_message_size(SMALL_REQUEST_BYTES_MAX))
        .add_service(v1alpha.max_decoding_message_size(SMALL_REQUEST_BYTES_MAX))
}

/// What the metrics page reads when it is asked for.
fn numbers(driver: &Handle, clients: &Clients) -> Numbers {
    let snapshot = Arc::clone(&driver.snapshots().borrow());
    let mut numbers = gauges::of(&snapshot, driver.now());
    let mut streams: BTreeMap<String, (f64, f64)> = BTreeMap::new();
    // Names that nobody knows are not labels: anybody could ask for any number of them.
    for view in clients.views().into_iter().filter(|view| snapshot.services.contains_key(&view.service)) {
        let (open, unsynced) = streams.entry(telemetry::service_label(&view.service)).or_default();
        *open += 1.0;
        *unsynced += f64::from(view.standing.is_bad());
    }
    for (service, (open, unsynced)) in streams {
        let labels = vec![("service", service.clone()), ("protocol", "lookaside".to_owned())];
        numbers.insert((PICK_STREAMS, labels), open);
        numbers.insert((PICK_STREAMS_UNSYNCED, vec![("service", service)]), unsynced);
    }
    numbers
}

async fn listen(listener: &'static str, address: SocketAddr) -> Result<(TcpListener, SocketAddr), Error> {
    let failed = |reason| Error::Listen { listener, address, reason };
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }.map_err(failed)?;
    // A restarted balancer has its old address at once, whatever the kernel still remembers of its connections.
    socket.set_reuseaddr(true).map_err(failed)?;
    socket.bind(address).map_err(failed)?;
    let listening = socket.listen(CONNECTIONS_WAITING_MAX).map_err(failed)?;
    let address = listening.local_addr().map_err(failed)?;
    Ok((listening, address))
}

#[cfg(test)]
mod tests;
