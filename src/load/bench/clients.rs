//! Clients of one process that each know nothing of the others: every one has its own way to choose an endpoint, its own
//! connections, and where it asks a balancer its own stream. All ways share what is not the choice: generated client, runtime,
//! requests, clocks.

mod ewma;
mod own;

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, Instant};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use lookaside_proto::demo::{EchoRequest, echo_client::EchoClient};
use lookaside_sdk::EndpointState;
use serde::{Deserialize, Serialize};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use super::Error;
use ewma::Ewma;
use own::Own;

/// How long connections may take to come about.
const CONNECT_MAX: Duration = Duration::from_secs(60);
/// Clients that connect at once: a backlog holds them all.
const CONNECTING_MAX: usize = 32;
const LOOK: Duration = Duration::from_millis(10);

/// How a client chooses the endpoint of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Policy {
    /// The SDK, with lists from a balancer.
    Lookaside,
    /// The less busy of two at random, by the client's own calls in flight.
    P2c,
    /// In turns.
    RoundRobin,
    /// `Channel::balance_list` of tonic.
    Tonic,
    /// The cheaper of two at random by `tower::load::PeakEwma`: latency of late, times calls in flight.
    PeakEwma,
    /// One Envoy in between, `LEAST_REQUEST`.
    Envoy,
    /// One HAProxy in between, `leastconn`.
    Haproxy,
}

impl Policy {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Lookaside, Self::P2c, Self::RoundRobin, Self::Tonic, Self::PeakEwma, Self::Envoy, Self::Haproxy];

    /// As people write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Lookaside => "lookaside",
            Self::P2c => "p2c",
            Self::RoundRobin => "round_robin",
            Self::Tonic => "tonic",
            Self::PeakEwma => "peak_ewma",
            Self::Envoy => "envoy",
            Self::Haproxy => "haproxy",
        }
    }

    /// Whether another program stands in between, which has to be there.
    pub fn is_proxy(self) -> bool {
        match self {
            Self::Envoy | Self::Haproxy => true,
            Self::Lookaside | Self::P2c | Self::RoundRobin | Self::Tonic | Self::PeakEwma => false,
        }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.name())
    }
}

impl FromStr for Policy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|policy| policy.name() == text).ok_or_else(|| {
            let names: Vec<_> = Self::ALL.iter().map(|policy| policy.name()).collect();
            format!("one of {} is expected", names.join(", "))
        })
    }
}

/// Who is to call whom.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Plan {
    /// How.
    pub policy: Policy,
    /// So many, each for itself.
    pub clients: u32,
    /// The service.
    pub service: String,
    /// Client listener of a balancer, for those that ask one.
    pub balancer: String,
    /// `host:port` of each endpoint, or `unix:/path` of the one proxy.
    pub endpoints: Vec<String>,
}

/// One client.
#[derive(Debug)]
pub(crate) enum Client {
    Sdk(EchoClient<lookaside_sdk::Channel>),
    Own(Own),
    // One channel to a list of endpoints, or to a proxy.
    Channel(EchoClient<Channel>),
    Ewma(EchoClient<Ewma>),
}

impl Client {
    /// Makes one call; the name of the backend that served it.
    pub(crate) async fn call(&self, deadline: Duration) -> Result<String, Status> {
        let mut request = Request::new(EchoRequest::default());
        request.set_timeout(deadline);
        let answer = match self {
            Self::Sdk(client) => client.clone().unary(request).await,
            Self::Own(own) => own.unary(request).await,
            Self::Channel(client) => client.clone().unary(request).await,
            Self::Ewma(client) => client.clone().unary(request).await,
        };
        answer.map(|answer| answer.into_inner().instance)
    }
}

/// All of them, connected.
///
/// # Errors
/// When a connection cannot be made, or not all come about in time.
pub(crate) async fn connect(plan: &Plan) -> Result<Vec<Client>, Error> {
    let clients = stream::iter(0..plan.clients).map(|number| one(plan, number));
    let connecting = clients.buffered(CONNECTING_MAX).try_collect::<Vec<_>>();
    let late = |_| Error::Incomplete { what: "clients", ready: 0, wanted: plan.clients as usize, within: CONNECT_MAX };
    tokio::time::timeout(CONNECT_MAX, connecting).await.map_err(late)?
}

async fn one(plan: &Plan, number: u32) -> Result<Client, Error> {
    Ok(match plan.policy {
        Policy::Lookaside => Client::Sdk(EchoClient::new(sdk(plan, number).await?)),
        Policy::P2c => Client::Own(Own::p2c(channels(plan).await?)),
        // Not all of them begin with the same endpoint.
        Policy::RoundRobin => Client::Own(Own::round_robin(channels(plan).await?, number as usize)),
        Policy::Tonic => {
            let endpoints: Result<Vec<_>, _> = plan.endpoints.iter().map(|address| endpoint(address)).collect();
            Client::Channel(EchoClient::new(Channel::balance_list(endpoints?.into_iter())))
        }
        Policy::PeakEwma => Client::Ewma(EchoClient::new(Ewma::new(channels(plan).await?))),
        Policy::Envoy | Policy::Haproxy => {
            let proxy = plan.endpoints.first().map_or("", String::as_str);
            Client::Channel(EchoClient::new(endpoint(proxy)?.connect().await?))
        }
    })
}

async fn sdk(plan: &Plan, number: u32) -> Result<lookaside_sdk::Channel, Error> {
    let builder = lookaside_sdk::Channel::builder(&plan.service).balancers([&plan.balancer]);
    let channel = builder.client_id(format!("bench-{}-{number}", std::process::id())).lazy()?;
    let started = Instant::now();
    loop {
        let is_ready = |e: &&lookaside_sdk::EndpointSnapshot| e.state == EndpointState::Ready;
        let (ready, wanted) = (channel.snapshot().endpoints.iter().filter(is_ready).count(), plan.endpoints.len());
        if ready >= wanted {
            return Ok(channel);
        }
        if started.elapsed() > CONNECT_MAX {
            return Err(Error::Incomplete { what: "connections", ready, wanted, within: CONNECT_MAX });
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn endpoint(address: &str) -> Result<Endpoint, Error> {
    let uri = if address.starts_with("unix:") { address.to_owned() } else { format!("http://{address}") };
    Ok(Endpoint::from_shared(uri)?.tcp_nodelay(true).connect_timeout(CONNECT_MAX))
}

async fn channels(plan: &Plan) -> Result<Vec<Channel>, Error> {
    let mut channels = Vec::with_capacity(plan.endpoints.len());
    for address in &plan.endpoints {
        channels.push(endpoint(address)?.connect().await?);
    }
    Ok(channels)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_policy_is_read_as_it_is_written() {
        for policy in Policy::ALL {
            assert_eq!(policy.name().parse(), Ok(policy));
            assert_eq!(serde_json::to_string(&policy).unwrap(), format!("\"{policy}\""));
        }
        assert!("least".parse::<Policy>().unwrap_err().contains("lookaside, p2c"));
    }
}
