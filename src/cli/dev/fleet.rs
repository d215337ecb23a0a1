//! What `lookaside dev` runs beside the load: a balancer on ports of its own, and demo backends of unequal speed that
//! register with it, as they would from other machines.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use lookaside_balancer::Running;
use lookaside_balancer::config::{Config, Listen};
use lookaside_load::backend::{self, Backend};
use lookaside_proto::v1::admin_client::AdminClient;
use lookaside_proto::v1::r#override::Scope;
use lookaside_proto::v1::{ListServicesRequest, Override, OverrideAction, SetOverrideRequest};
use lookaside_tls::Trouble;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use crate::admin;
use crate::exit::{Exit, Failure, chain};

/// The service that the backends serve and the clients call.
pub(super) const SERVICE: &str = "demo";
/// Mean service time of a backend of ordinary speed: with eight slots each, six of them carry well over the default rate.
const MEAN: Duration = Duration::from_millis(10);
/// How much slower each one is, in turn: a fleet is never of one make.
const SLOW_FACTORS: [f64; 6] = [1.0, 0.8, 1.0, 1.5, 1.0, 1.2];
/// For everything that happens within this process.
const PATIENCE: Duration = Duration::from_secs(10);

/// A balancer and its backends.
pub(super) struct Fleet {
    pub(super) addresses: Listen,
    balancer: Running,
    shutdown: CancellationToken,
    admin: AdminClient<Channel>,
    backends: Vec<Backend>,
    started: usize,
}

impl Fleet {
    /// Starts all of it on loopback, and waits until the balancer offers every backend.
    pub(super) async fn start(backends: u16) -> Result<Self, Failure> {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let config = Config { listen: Listen { client: any, admin: any, metrics: any }, ..Config::default() };
        let shutdown = CancellationToken::new();
        let balancer = lookaside_balancer::run(config, shutdown.clone()).await;
        let balancer = balancer.map_err(|error| Failure::new(Exit::Failed, chain(&error)))?;
        let addresses = balancer.addresses;
        let (channel, _) = admin::connect(&addresses.admin.to_string(), PATIENCE, None).await?;
        let admin = AdminClient::new(channel);
        let mut fleet = Self { addresses, balancer, shutdown, admin, backends: Vec::new(), started: 0 };
        for _ in 0..backends {
            fleet.add().await?;
        }
        fleet.until_offered(u32::from(backends)).await?;
        Ok(fleet)
    }

    /// Starts one more backend; its address.
    pub(super) async fn add(&mut self) -> Result<String, Failure> {
        let slow_factor = SLOW_FACTORS[self.started % SLOW_FACTORS.len()];
        let config = backend::Config {
            balancers: vec![self.addresses.client.to_string()],
            mean: MEAN,
            slow_factor,
            ..backend::Config::new(SERVICE)
        };
        let backend = Backend::start(config).await.map_err(|error| Failure::new(Exit::Failed, chain(&error)))?;
        let address = backend.address().to_owned();
        self.backends.push(backend);
        self.started += 1;
        Ok(address)
    }

    /// How many backends run.
    pub(super) fn len(&self) -> usize {
        self.backends.len()
    }

    /// Kills the backend that has run longest, as a power cut would; its address.
    pub(super) fn kill_first(&mut self) -> Option<String> {
        self.take_first().map(|backend| {
            backend.kill();
            backend.address().to_owned()
        })
    }

    /// Stops the backend that has run longest, as SIGTERM would; its address.
    pub(super) async fn stop_first(&mut self) -> Option<String> {
        let backend = self.take_first()?;
        backend.drain().await;
        Some(backend.address().to_owned())
    }

    /// Gives an operator's word on the backend that has run longest; its address.
    pub(super) async fn order_first(&mut self, action: OverrideAction) -> Result<Option<String>, Failure> {
        let Some(address) = self.backends.first().map(|backend| backend.address().to_owned()) else {
            return Ok(None);
        };
        let word = Override {
            service: SERVICE.to_owned(),
            scope: Some(Scope::Address(address.clone())),
            action: action.into(),
            reason: "chaos".to_owned(),
            ..Override::default()
        };
        let request = SetOverrideRequest { r#override: Some(word), for_ms: 0, dry_run: false };
        let admin_address = self.addresses.admin.to_string();
        admin::answer(&admin_address, PATIENCE, &Trouble::default(), self.admin.set_override(request)).await?;
        Ok(Some(address))
    }

    /// Stops everything: the backends at once, for nobody calls them any more, then the balancer.
    pub(super) async fn stop(self) -> Result<(), Failure> {
        drop(self.backends);
        self.shutdown.cancel();
        self.balancer.finished().await.map_err(|error| Failure::new(Exit::Failed, chain(&error)))
    }

    fn take_first(&mut self) -> Option<Backend> {
        (!self.backends.is_empty()).then(|| self.backends.remove(0))
    }

    async fn until_offered(&mut self, backends: u32) -> Result<(), Failure> {
        let address = self.addresses.admin.to_string();
        let offered = async {
            loop {
                let request = ListServicesRequest { service: String::new() };
                let services =
                    admin::answer(&address, PATIENCE, &Trouble::default(), self.admin.list_services(request))
                        .await?
                        .services;
                if services.iter().any(|s| s.name == SERVICE && s.eligible >= backends) {
                    return Ok::<_, Failure>(());
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, offered).await.unwrap_or_else(|_| {
            let text = format!("the demo backends were not offered within {PATIENCE:?}");
            Err(Failure::new(Exit::Failed, text).next(format!("lookaside -a {address} endpoints")))
        })
    }
}
