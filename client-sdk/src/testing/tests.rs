use std::time::Duration;

use lookaside_proto::v1::balancer_client::BalancerClient;
use lookaside_proto::v1::{
    Ack, HeldList, Hello, LoadReport, PickRequest, PickResponse, Registration, Subscribe, pick_request, pick_response,
    reporter_client::ReporterClient,
};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::*;

const SOON: Duration = Duration::from_secs(10);

struct Client {
    requests: mpsc::Sender<PickRequest>,
    responses: Streaming<PickResponse>,
}

impl Client {
    async fn open(balancer: &Balancer, held: Vec<HeldList>) -> Self {
        let mut client = BalancerClient::connect(format!("http://{}", balancer.address())).await.unwrap();
        let (requests, waiting) = mpsc::channel(16);
        let responses = client.pick(ReceiverStream::new(waiting)).await.unwrap().into_inner();
        let client = Self { requests, responses };
        let hello = Hello { client_id: "c".to_owned(), held, ..Hello::default() };
        client.say(pick_request::Kind::Hello(hello)).await;
        client.say(pick_request::Kind::Subscribe(Subscribe { service: "s".to_owned() })).await;
        client
    }

    async fn say(&self, kind: pick_request::Kind) {
        self.requests.send(PickRequest { kind: Some(kind) }).await.unwrap();
    }

    async fn hear(&mut self) -> pick_response::Kind {
        timeout(SOON, self.responses.message()).await.unwrap().unwrap().unwrap().kind.unwrap()
    }

    async fn list(&mut self) -> List {
        loop {
            if let pick_response::Kind::List(list) = self.hear().await {
                return list;
            }
        }
    }
}

#[tokio::test]
async fn a_subscriber_gets_the_list_and_every_change_of_it() {
    let balancer = Balancer::start().await.unwrap();
    let first = balancer.set("s", ["127.0.0.1:1"]);
    let mut client = Client::open(&balancer, Vec::new()).await;
    assert_eq!(client.list().await.version, Some(first));
    let second = balancer.set("s", ["127.0.0.1:1", "127.0.0.1:2"]);
    let list = client.list().await;
    assert_eq!((list.version, list.endpoints.len(), list.complete), (Some(second), 2, true));
    client.say(pick_request::Kind::Ack(Ack { service: "s".to_owned(), version: Some(second), ..Ack::default() })).await;
    assert!(balancer.wait_for(|seen| seen.acked("s") == Some(second), SOON).await);
    assert_eq!(balancer.seen().hellos[0].client_id, "c");
}

#[tokio::test]
async fn a_resume_with_an_equal_digest_gets_a_tick_and_no_list() {
    let balancer = Balancer::start().await.unwrap();
    balancer.set("s", ["127.0.0.1:1"]);
    let list = Client::open(&balancer, Vec::new()).await.list().await;
    let held = HeldList { service: "s".to_owned(), digest: list.digest, ..HeldList::default() };
    let mut client = Client::open(&balancer, vec![held]).await;
    assert!(matches!(client.hear().await, pick_response::Kind::Tick(tick) if tick.version == list.version));
}

#[tokio::test]
async fn a_restart_keeps_the_port_and_the_lists_and_begins_an_epoch() {
    let balancer = Balancer::start().await.unwrap();
    let before = balancer.set("s", ["127.0.0.1:1"]);
    let mut client = Client::open(&balancer, Vec::new()).await;
    client.list().await;
    let address = balancer.address();
    balancer.restart().await.unwrap();
    let broken = async { while let Ok(Some(_)) = client.responses.message().await {} };
    timeout(SOON, broken).await.unwrap();
    assert_eq!(balancer.address(), address);
    let list = Client::open(&balancer, Vec::new()).await.list().await;
    assert_ne!(list.version.unwrap().epoch, before.epoch);
    balancer.stop().await;
    assert!(BalancerClient::connect(format!("http://{address}")).await.is_err());
}

#[tokio::test]
async fn errors_and_redirects_reach_the_subscribers() {
    let balancer = Balancer::start().await.unwrap();
    balancer.service_error("s", tonic::Code::NotFound, "UNKNOWN_SERVICE", "no such service");
    let mut client = Client::open(&balancer, Vec::new()).await;
    assert!(
        matches!(client.hear().await, pick_response::Kind::ServiceError(error) if error.reason == "UNKNOWN_SERVICE")
    );
    balancer.redirect(["127.0.0.1:9"], &[]);
    assert!(matches!(client.hear().await, pick_response::Kind::Redirect(to) if to.balancers == ["127.0.0.1:9"]));
    let version = balancer.set("s", ["127.0.0.1:1"]);
    assert_eq!(client.list().await.version, Some(version));
}

#[tokio::test]
async fn a_backend_that_drains_is_let_go_when_every_stream_knows() {
    let balancer = Balancer::start().await.unwrap();
    balancer.set("s", ["127.0.0.1:1", "127.0.0.1:2"]);
    let mut client = Client::open(&balancer, Vec::new()).await;
    let first = client.list().await;
    client
        .say(pick_request::Kind::Ack(Ack { service: "s".to_owned(), version: first.version, ..Ack::default() }))
        .await;
    let mut reporter = ReporterClient::connect(format!("http://{}", balancer.address())).await.unwrap();
    let (reports, waiting) = mpsc::channel(16);
    let mut answers = reporter.report(ReceiverStream::new(waiting)).await.unwrap().into_inner();
    let registration = Registration {
        service: "s".to_owned(),
        address: "127.0.0.1:1".to_owned(),
        instance: "one".to_owned(),
        ..Registration::default()
    };
    reports.send(LoadReport { registration: Some(registration), sequence: 1, ..LoadReport::default() }).await.unwrap();
    let answer = timeout(SOON, answers.message()).await.unwrap().unwrap().unwrap();
    assert!(answer.accepted && answer.listed);
    reports.send(LoadReport { sequence: 2, draining: true, ..LoadReport::default() }).await.unwrap();
    let list = client.list().await;
    assert_eq!(list.endpoints.iter().map(|endpoint| endpoint.weight).collect::<Vec<_>>(), [0, 100]);
    assert!(timeout(SOON, answers.message()).await.unwrap().unwrap().unwrap().listed);
    client.say(pick_request::Kind::Ack(Ack { service: "s".to_owned(), version: list.version, ..Ack::default() })).await;
    assert!(!timeout(SOON, answers.message()).await.unwrap().unwrap().unwrap().listed);
}
