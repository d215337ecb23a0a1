//! Commands against scripted replicas: who is asked, what is waited for, and which exit code that gives.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use clap::CommandFactory as _;
use lookaside_proto::v1::admin_server::{Admin, AdminServer};
use lookaside_proto::v1::{self, ClientDetail, ServiceSummary, Version, set_override_response::Effect};
use tokio::io::AsyncWriteExt as _;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

use super::*;
use crate::exit::Exit;

const VERSION: Version = Version { epoch: 7, sequence: 5 };

/// A replica that knows the service `greeter` and notes what it was ordered.
#[derive(Clone, Default)]
struct Replica(Arc<Mutex<Script>>);

#[derive(Default)]
struct Script {
    refuse: Option<Status>,
    ordered: Vec<v1::SetOverrideRequest>,
    acknowledged: Option<Version>,
    /// What the client acknowledges once it was looked at.
    acknowledges_next: Option<Version>,
}

impl Replica {
    async fn start(&self) -> SocketAddr {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tonic::transport::Server::builder().add_service(AdminServer::new(self.clone()));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        address
    }

    fn script(&self) -> std::sync::MutexGuard<'_, Script> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[tonic::async_trait]
impl Admin for Replica {
    async fn get_status(&self, _: Request<v1::GetStatusRequest>) -> Result<Response<v1::Status>, Status> {
        let greeter = ServiceSummary { name: "greeter".to_owned(), ..ServiceSummary::default() };
        Ok(Response::new(v1::Status { services: vec![greeter], ..v1::Status::default() }))
    }

    async fn list_services(
        &self,
        _: Request<v1::ListServicesRequest>,
    ) -> Result<Response<v1::ListServicesResponse>, Status> {
        match self.script().refuse.take() {
            Some(status) => Err(status),
            None => Ok(Response::new(v1::ListServicesResponse::default())),
        }
    }

    async fn list_endpoints(
        &self,
        _: Request<v1::ListEndpointsRequest>,
    ) -> Result<Response<v1::ListEndpointsResponse>, Status> {
        Ok(Response::new(v1::ListEndpointsResponse::default()))
    }

    async fn list_clients(
        &self,
        _: Request<v1::ListClientsRequest>,
    ) -> Result<Response<v1::ListClientsResponse>, Status> {
        let mut script = self.script();
        let client = ClientDetail {
            client_id: "web-1".to_owned(),
            acknowledged: script.acknowledged,
            ..ClientDetail::default()
        };
        script.acknowledged = script.acknowledges_next;
        Ok(Response::new(v1::ListClientsResponse { clients: vec![client] }))
    }

    async fn explain(&self, _: Request<v1::ExplainRequest>) -> Result<Response<v1::Explanation>, Status> {
        Err(Status::not_found("no such endpoint"))
    }

    type WatchDecisionsStream = tokio_stream::Empty<Result<v1::Decision, Status>>;

    async fn watch_decisions(
        &self,
        _: Request<v1::WatchDecisionsRequest>,
    ) -> Result<Response<Self::WatchDecisionsStream>, Status> {
        Ok(Response::new(tokio_stream::empty()))
    }

    async fn set_override(
        &self,
        request: Request<v1::SetOverrideRequest>,
    ) -> Result<Response<v1::SetOverrideResponse>, Status> {
        self.script().ordered.push(request.into_inner());
        let effect = Effect { service: "greeter".to_owned(), version: Some(VERSION), ..Effect::default() };
        Ok(Response::new(v1::SetOverrideResponse { effects: vec![effect] }))
    }
}

/// An address where nobody listens any more.
async fn nobody() -> SocketAddr {
    tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

/// The exit code of a command against these replicas; none when it succeeds.
async fn exit(replicas: &[SocketAddr], command: &[&str]) -> Option<Exit> {
    let addresses = replicas.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let words = ["lookaside", "-a", addresses.as_str()].into_iter().chain(command.iter().copied());
    dispatch(Cli::try_parse_from(words).unwrap()).await.err().map(|failure| failure.exit)
}

#[test]
fn the_command_tree_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn every_command_teaches_by_example() {
    let mut tree = Cli::command();
    tree.build();
    let dev = tree.get_subcommands().find(|c| c.get_name() == "dev").unwrap();
    for command in tree.get_subcommands().chain(dev.get_subcommands()).filter(|c| c.get_name() != "help") {
        let help = command.clone().render_help().to_string();
        assert!(help.contains("Example"), "`{}` shows no example", command.get_name());
    }
}

#[test]
fn an_address_list_reaches_several_replicas() {
    let cli = Cli::try_parse_from(["lookaside", "status", "-a", "http://a:7401,b:7401"]).unwrap();
    assert_eq!(cli.global.addr, ["http://a:7401", "b:7401"]);
    assert!(Cli::try_parse_from(["lookaside", "status", "-a", "nowhere"]).is_err());
}

#[tokio::test]
async fn a_read_asks_the_first_replica_that_answers() {
    let (dead, alive) = (nobody().await, Replica::default().start().await);
    assert_eq!(exit(&[dead, alive], &["status"]).await, None);
    assert_eq!(exit(&[dead], &["status"]).await, Some(Exit::Unreachable));
}

#[tokio::test]
async fn what_does_not_exist_is_exit_3() {
    let replica = Replica::default().start().await;
    assert_eq!(exit(&[replica], &["endpoints", "gretter"]).await, Some(Exit::NotFound));
    assert_eq!(exit(&[replica], &["explain", "greeter", "--endpoint", "a:1"]).await, Some(Exit::NotFound));
    assert_eq!(exit(&[replica], &["watch", "gretter"]).await, Some(Exit::NotFound));
    assert_eq!(exit(&[replica], &["endpoints", "greeter"]).await, None);
    assert_eq!(exit(&[replica], &["watch", "greeter"]).await, None);
}

#[tokio::test]
async fn what_is_not_allowed_is_exit_6() {
    let replica = Replica::default();
    replica.script().refuse = Some(Status::permission_denied("no"));
    assert_eq!(exit(&[replica.start().await], &["services"]).await, Some(Exit::Denied));
}

#[tokio::test]
async fn an_override_goes_to_every_replica_and_a_missing_one_is_told() {
    let (a, b) = (Replica::default(), Replica::default());
    let replicas = [a.start().await, nobody().await, b.start().await];
    let drain = ["drain", "http://10.0.0.1:1", "--for", "10m", "--reason", "upgrade"];
    assert_eq!(exit(&replicas, &drain).await, Some(Exit::Unreachable));
    for replica in [a, b] {
        let script = replica.script();
        let [order] = script.ordered.as_slice() else { panic!("{} orders", script.ordered.len()) };
        assert_eq!((order.for_ms, order.dry_run), (600_000, false));
        let word = order.r#override.clone().unwrap();
        assert_eq!(word.scope, Some(v1::r#override::Scope::Address("10.0.0.1:1".to_owned())));
        assert_eq!(word.reason, "upgrade");
    }
}

#[tokio::test]
async fn the_wrong_listener_is_named() {
    let client_listener = Replica::default();
    client_listener.script().refuse = Some(Status::unimplemented(""));
    assert_eq!(exit(&[client_listener.start().await], &["services"]).await, Some(Exit::Usage));

    // A page server ends the connection of whoever does not speak HTTP/1.
    let metrics = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = metrics.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut connection, _)) = metrics.accept().await {
            let _ = connection.write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n").await;
        }
    });
    assert_eq!(exit(&[address], &["status"]).await, Some(Exit::Unreachable));
}

#[tokio::test]
async fn waiting_ends_when_every_client_has_the_new_list() {
    let replica = Replica::default();
    replica.script().acknowledges_next = Some(VERSION);
    assert_eq!(exit(&[replica.start().await], &["drain", "a:1", "--wait"]).await, None);
}

#[tokio::test]
async fn waiting_for_a_client_that_does_not_hear_is_exit_5() {
    let replica = Replica::default();
    replica.script().acknowledges_next = Some(Version { epoch: 7, sequence: 4 });
    let drain = ["drain", "a:1", "--wait", "--timeout", "200ms"];
    assert_eq!(exit(&[replica.start().await], &drain).await, Some(Exit::TimedOut));
}

#[tokio::test]
async fn a_followed_stream_that_ends_is_a_failure() {
    let replica = Replica::default().start().await;
    assert_eq!(exit(&[replica], &["watch"]).await, None);
    assert_eq!(exit(&[replica], &["watch", "-f"]).await, Some(Exit::Unreachable));
}
