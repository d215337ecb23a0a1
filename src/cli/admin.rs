//! The connection to the admin listener: which replica is asked, how long it may take, and what its refusals mean to a
//! script.

use std::time::Duration;

use lookaside_proto::v1::{GetStatusRequest, Status, admin_client::AdminClient};
use lookaside_tls::{Connector, Tls, Trouble};
use tonic::transport::{Channel, Endpoint};

use crate::Global;
use crate::exit::{Exit, Failure, chain};

/// How long one question may take unless `--timeout` says otherwise.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(5);

/// A replica that was reached, and how it described itself when it was.
pub(crate) struct Admin {
    /// `host:port` of its admin listener, as it was named to us.
    pub(crate) address: String,
    /// Whether nobody on the way reads along.
    pub(crate) over_tls: bool,
    pub(crate) status: Status,
    pub(crate) client: AdminClient<Channel>,
    trouble: Trouble,
    timeout: Duration,
}

impl Admin {
    /// The first of the named replicas that answers, for reading. Fails with the first one's reason when none does.
    pub(crate) async fn connect(global: &Global) -> Result<Self, Failure> {
        let mut failures = Vec::new();
        for address in &global.addr {
            match Self::connect_to(address, global).await {
                Ok(admin) => {
                    note(&failures);
                    if global.addr.len() > 1 {
                        eprintln!("note: {address} answers");
                    }
                    return Ok(admin);
                }
                Err(failure) => failures.push(failure),
            }
        }
        Err(first_of(failures).unwrap_or_else(|| Failure::new(Exit::Usage, "--addr names no balancer")))
    }

    /// One replica. Fails when it does not answer in time.
    pub(crate) async fn connect_to(named: &str, global: &Global) -> Result<Self, Failure> {
        let timeout = question_timeout(global);
        let (address, tls) = global.secure.admin(named)?;
        let over_tls = tls.is_some();
        let (channel, trouble) = connect(address, timeout, tls).await?;
        let mut client = AdminClient::new(channel);
        let status = answer(address, timeout, &trouble, client.get_status(GetStatusRequest {})).await?;
        Ok(Self { address: address.to_owned(), over_tls, status, client, trouble, timeout })
    }

    /// Waits for an answer to a question put through `self.client`, at most the timeout.
    pub(crate) async fn answer<T>(
        &self,
        question: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    ) -> Result<T, Failure> {
        answer(&self.address, self.timeout, &self.trouble, question).await
    }

    /// Where clients connect, as seen from here.
    pub(crate) fn client_address(&self) -> String {
        crate::address::seen_from_here(&self.status.client_address, &self.address)
    }

    /// How clients connect there. Fails when that is over TLS and nothing says whom to trust.
    pub(crate) fn client_tls(&self, global: &Global) -> Result<Option<Tls>, Failure> {
        if !self.status.certificates.iter().any(|certificate| certificate.listener == "client") {
            return Ok(None);
        }
        let tls = global.secure.tls()?;
        if tls.is_none() {
            let text = format!("clients of the balancer at {} connect over TLS", self.client_address());
            return Err(Failure::new(Exit::Usage, text).next("--ca FILE, the CA of its certificate"));
        }
        Ok(tls)
    }

    /// Fails when the balancer does not know this service, and names those it does.
    pub(crate) fn expect_service(&self, service: &str) -> Result<(), Failure> {
        if self.status.services.iter().any(|s| s.name == service) {
            return Ok(());
        }
        let known: Vec<&str> = self.status.services.iter().take(10).map(|s| s.name.as_str()).collect();
        let known = if known.is_empty() { "none yet".to_owned() } else { known.join(", ") };
        Err(Failure::new(Exit::NotFound, format!("no service \"{service}\" (known: {known})"))
            .next("lookaside services"))
    }
}

/// The failure to end with; the others are told on stderr, so that each is told once.
pub(crate) fn first_of(mut failures: Vec<Failure>) -> Option<Failure> {
    let others = failures.split_off(failures.len().min(1));
    note(&others);
    failures.pop()
}

fn note(failures: &[Failure]) {
    for failure in failures {
        eprintln!("note: {failure}");
    }
}

/// How long one question may take.
pub(crate) fn question_timeout(global: &Global) -> Duration {
    global.timeout.unwrap_or(QUESTION_TIMEOUT)
}

/// A connection to `host:port`, and what TLS has to say if it breaks. Fails when it is not made in time.
pub(crate) async fn connect(address: &str, timeout: Duration, tls: Option<Tls>) -> Result<(Channel, Trouble), Failure> {
    let is_secured = tls.is_some();
    let connector = Connector::new(tls, address);
    let trouble = connector.trouble();
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|error| Failure::new(Exit::Usage, format!("`{address}` is no address: {error}")))?
        .connect_timeout(timeout);
    // An address that stands in one URI stands in the other.
    let endpoint = match connector.origin().parse() {
        Ok(origin) => endpoint.origin(origin),
        Err(_) => endpoint,
    };
    let connect = tokio::time::timeout(timeout, endpoint.connect_with_connector(connector));
    let Ok(connected) = connect.await else {
        return Err(Failure::unreachable(address, &format!("no connection within {timeout:?}")));
    };
    match connected {
        Ok(channel) => Ok((channel, trouble)),
        Err(error) => {
            // "transport error" says nothing that its cause does not say better.
            let cause = std::error::Error::source(&error).map_or_else(|| error.to_string(), chain);
            let failure = Failure::unreachable(address, trouble.said().unwrap_or(&cause));
            Err(match is_secured {
                true => failure.next(format!(
                    "http://{address}, if it does not speak TLS: with --ca an address without a scheme is taken to"
                )),
                false => failure,
            })
        }
    }
}

/// Waits for an answer, at most `timeout`. Fails as the status says.
pub(crate) async fn answer<T>(
    address: &str,
    timeout: Duration,
    trouble: &Trouble,
    question: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> Result<T, Failure> {
    match tokio::time::timeout(timeout, question).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) if trouble.said().is_some() => {
            Err(Failure::unreachable(address, trouble.said().unwrap_or(status.message())))
        }
        Ok(Err(status)) => Err(Failure::from_status(address, &status)),
        Err(_) => Err(Failure::unreachable(address, &format!("no answer within {timeout:?}"))),
    }
}
