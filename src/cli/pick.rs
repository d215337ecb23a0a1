//! `lookaside pick`: opens a genuine pick stream, as a client would, and prints the list it is given. What it shows is
//! what clients get, not what another interface says they get.

use lookaside_proto::v1::{
    Ack, Hello, List, PickRequest, PickResponse, ServiceError, Subscribe, balancer_client::BalancerClient,
    pick_request, pick_response,
};
use lookaside_tls::Tls;
use serde::Serialize;
use tokio::sync::mpsc;
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tonic::{Code, Status, Streaming};

use crate::admin::{self, Admin};
use crate::exit::{Exit, Failure};
use crate::output::{self, Envelope, Format};
use crate::{Global, address, clients, view};

/// Ask for a list as a client does, and print it in order
#[derive(clap::Args)]
#[command(after_help = "Examples:
  lookaside pick greeter --locality eu/a
  lookaside pick greeter --client-id web-7f9c -o json   (the very list that this client holds)
  lookaside pick greeter -w                             (every list as it changes)")]
pub(crate) struct Args {
    /// Service to ask for
    service: String,
    /// Ask as a client of this locality, region/zone/subzone [default: that of --client-id, if it is connected]
    #[arg(long)]
    locality: Option<String>,
    /// Ask as this client [default: lookaside-cli]
    #[arg(long, value_name = "ID")]
    client_id: Option<String>,
    /// Client listener to ask [default: what the admin listener names]
    #[arg(long, value_name = "ADDR", value_parser = address::parse)]
    balancer: Option<String>,
    /// Go on, and print each list that follows
    #[arg(short, long)]
    watch: bool,
}

/// What a list says beside its endpoints.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ListKeys {
    service: String,
    version: Option<view::Version>,
    digest: String,
    complete: bool,
    mode: &'static str,
    note: String,
}

/// One pick stream with one subscription.
struct Picks {
    balancer: String,
    requests: mpsc::Sender<PickRequest>,
    responses: Streaming<PickResponse>,
}

/// Prints the list, or every list that comes. Fails when the service is unknown or nothing is answered in time.
pub(crate) async fn run(global: &Global, args: Args) -> Result<(), Failure> {
    // With --balancer the admin listener is not needed, and may be out of reach.
    let (balancer, tls, identity, admin) = match &args.balancer {
        Some(balancer) => (balancer.clone(), global.secure.tls()?, String::new(), None),
        None => {
            let admin = Admin::connect(global).await?;
            admin.expect_service(&args.service)?;
            let tls = admin.client_tls(global)?;
            (admin.client_address(), tls, admin.status.balancer.clone(), Some(admin))
        }
    };
    let timeout = admin::question_timeout(global);
    let locality = match (&args.locality, &args.client_id, &admin) {
        (Some(locality), _, _) => locality.clone(),
        (None, Some(client_id), Some(admin)) => locality_of(admin, &args.service, client_id).await?,
        (None, _, _) => String::new(),
    };
    let client_id = args.client_id.clone().unwrap_or_else(|| "lookaside-cli".to_owned());
    let first = async {
        let mut picks = Picks::open(&balancer, tls, timeout, hello(client_id, locality), &args.service).await?;
        let list = picks.next(&args.service).await?;
        Ok::<_, Failure>((picks, list))
    };
    let (mut picks, mut list) = tokio::time::timeout(timeout, first)
        .await
        .map_err(|_| Failure::unreachable(&balancer, &format!("no list within {timeout:?}")))??;
    loop {
        print(global, &identity, list)?;
        if !args.watch {
            return Ok(());
        }
        list = picks.next(&args.service).await?;
    }
}

fn hello(client_id: String, locality: String) -> Hello {
    Hello {
        client_id,
        locality,
        sdk: concat!("lookaside-cli/", env!("CARGO_PKG_VERSION")).to_owned(),
        ..Hello::default()
    }
}

/// The list of a connected client depends on where it says it is, so the question must say the same.
async fn locality_of(admin: &Admin, service: &str, client_id: &str) -> Result<String, Failure> {
    let connected = clients::list(admin, service).await?;
    match connected.into_iter().find(|c| c.client_id == client_id) {
        Some(client) => Ok(client.locality),
        None => {
            eprintln!("note: no client \"{client_id}\" is connected: asking as one without a locality");
            Ok(String::new())
        }
    }
}

impl Picks {
    async fn open(
        balancer: &str,
        tls: Option<Tls>,
        timeout: std::time::Duration,
        hello: Hello,
        service: &str,
    ) -> Result<Self, Failure> {
        let (channel, trouble) = admin::connect(balancer, timeout, tls).await?;
        let first = [
            pick_request::Kind::Hello(hello),
            pick_request::Kind::Subscribe(Subscribe { service: service.to_owned() }),
        ];
        let first = tokio_stream::iter(first.map(|kind| PickRequest { kind: Some(kind) }));
        // Room for a few acknowledgements: the stream takes them from there as fast as it can write.
        let (requests, outbox) = mpsc::channel(4);
        let stream = first.chain(ReceiverStream::new(outbox));
        let responses = BalancerClient::new(channel).pick(stream).await;
        let responses = responses.map_err(|status| match trouble.said() {
            Some(said) => Failure::unreachable(balancer, said),
            None => Failure::from_status(balancer, &status),
        })?;
        let responses = responses.into_inner();
        Ok(Self { balancer: balancer.to_owned(), requests, responses })
    }

    /// The next list, acknowledged. Everything else on the stream is either fatal or of no interest here.
    async fn next(&mut self, service: &str) -> Result<List, Failure> {
        loop {
            let message =
                self.responses.message().await.map_err(|status| Failure::from_status(&self.balancer, &status))?;
            let Some(message) = message else {
                return Err(Failure::unreachable(&self.balancer, "it ended the stream"));
            };
            match message.kind {
                Some(pick_response::Kind::List(list)) if list.service == service => {
                    let ack = Ack { service: list.service.clone(), version: list.version, refused: String::new() };
                    // A stream that has just broken says so on the next read.
                    let _ = self.requests.send(PickRequest { kind: Some(pick_request::Kind::Ack(ack)) }).await;
                    return Ok(list);
                }
                Some(pick_response::Kind::ServiceError(error)) if error.service == service => {
                    return Err(self.service_failed(&error));
                }
                Some(pick_response::Kind::Redirect(redirect))
                    if redirect.services.is_empty() || redirect.services.iter().any(|s| s == service) =>
                {
                    let next = redirect.balancers.first().map_or_else(
                        || "the other replicas with --addr".to_owned(),
                        |other| format!("lookaside pick {service} --balancer {other}"),
                    );
                    let text =
                        format!("the balancer at {} sends clients elsewhere: {}", self.balancer, redirect.reason);
                    return Err(Failure::new(Exit::Unreachable, text).next(next));
                }
                Some(
                    pick_response::Kind::List(_)
                    | pick_response::Kind::ServiceError(_)
                    | pick_response::Kind::Redirect(_)
                    | pick_response::Kind::Tick(_)
                    | pick_response::Kind::MethodPolicy(_)
                    | pick_response::Kind::Grant(_),
                )
                | None => {}
            }
        }
    }

    fn service_failed(&self, error: &ServiceError) -> Failure {
        let reason = if error.reason.is_empty() { String::new() } else { format!(" [{}]", error.reason) };
        let status = Status::new(Code::from_i32(error.code), format!("{}{reason}", error.message));
        Failure::from_status(&self.balancer, &status)
    }
}

fn print(global: &Global, identity: &str, list: List) -> Result<(), Failure> {
    match global.output {
        Format::Table => output::text(&table(&list)),
        Format::Json => {
            let keys = ListKeys {
                service: list.service,
                version: view::Version::new(list.version),
                digest: format!("{:016x}", list.digest),
                complete: list.complete,
                mode: view::mode(list.mode),
                note: list.note,
            };
            let items = list.endpoints.into_iter().map(view::Endpoint::new).collect();
            output::json(&Envelope::with("List", identity, keys, items))
        }
    }
}

fn table(list: &List) -> String {
    let complete = if list.complete { "complete" } else { "incomplete" };
    let note = if list.note.is_empty() { String::new() } else { format!("   {}", list.note) };
    let headline = format!(
        "{} @ list {}   digest {:016x}   mode {}   {complete}{note}",
        list.service,
        view::version(list.version),
        list.digest,
        view::mode(list.mode),
    );
    format!("{}\n{}", output::clean(&headline), view::order(&list.endpoints))
}

#[cfg(test)]
mod tests {
    use lookaside_proto::v1::{Endpoint, ListMode, Version};

    use super::*;

    fn list() -> List {
        List {
            service: "greeter".to_owned(),
            version: Some(Version { epoch: 0xe700_0000_0000_0000, sequence: 88 }),
            digest: 0xabc,
            complete: true,
            mode: ListMode::Normal.into(),
            note: "1 excluded".to_owned(),
            endpoints: vec![Endpoint { address: "10.0.1.11:50051".to_owned(), weight: 100, ..Endpoint::default() }],
            ..List::default()
        }
    }

    #[test]
    fn a_list_says_what_it_is_before_its_endpoints() {
        assert_eq!(
            table(&list()),
            "greeter @ list e700:88   digest 0000000000000abc   mode NORMAL   complete   1 excluded\n\
             #  ENDPOINT         LOCALITY  PRIORITY  WEIGHT  REASONS\n\
             1  10.0.1.11:50051  -         0         100     -"
        );
        let settling = List { complete: false, note: "settling after a start".to_owned(), ..list() };
        assert!(table(&settling).contains("mode NORMAL   incomplete   settling after a start\n"));
    }
}
