use lookaside_core::model::{EndpointSpec, Locality};
use lookaside_proto::v1::{
    EndpointState, ExplainRequest, GetStatusRequest, ListClientsRequest, ListEndpointsRequest, ListServicesRequest,
    Override, OverrideAction, ReasonCode, SetOverrideRequest, WatchDecisionsRequest, admin_server::Admin as _,
    explanation::Verdict, r#override::Scope,
};
use tokio_stream::StreamExt as _;
use tonic::{Code, Request};
use tonic_types::StatusExt as _;

use super::*;
use crate::{
    config::Config,
    frontend::{
        clients::{Session, Who},
        cohorts::List,
    },
    testing::{PATIENCE, address, driver, list, list_specs, service, until},
};

struct Balancer {
    admin: Service,
    driver: Handle,
    clients: Arc<Clients>,
    stop: CancellationToken,
}

impl Drop for Balancer {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn balancer() -> Balancer {
    let stop = CancellationToken::new();
    let driver = driver(&stop);
    let clients = Arc::new(Clients::new());
    let any = "127.0.0.1:1".parse().unwrap();
    let admin = Service::new(Parts {
        driver: driver.clone(),
        clients: Arc::clone(&clients),
        node: "lb-0".to_owned(),
        live: Live::fixed(Config::default()),
        addresses: Listen { client: any, admin: any, metrics: any },
        certificates: Certificates::default(),
        token: None,
        report_streams: Box::new(|| 3),
        draining: CancellationToken::new(),
    });
    list(&driver, "greeter", &["10.0.0.1:1", "10.0.0.2:1"]).await;
    Balancer { admin, driver, clients, stop }
}

impl Balancer {
    /// A client that was sent the list of `greeter` as it is.
    fn client(&self, id: &str) -> (Session, Arc<List>) {
        use lookaside_core::{
            model::{ClientId, Cohort},
            policy::assign,
        };
        let id = ClientId::parse(id).unwrap();
        let snapshot = Arc::clone(&self.driver.snapshots().borrow());
        let greeter = &snapshot.services[&service("greeter")];
        let list = Arc::new(List::new(assign(greeter, &Cohort::of(&id, Locality::unknown()))));
        let who = Who { id, peer: None, sdk: "test/1".to_owned(), locality: Locality::unknown() };
        let session = self.clients.join(who);
        session.subscribed(&service("greeter"), Default::default());
        session.sent(&service("greeter"), greeter.version, &list);
        (session, list)
    }

    async fn explain(&self, request: ExplainRequest) -> Result<v1::Explanation, Status> {
        self.admin.explain(Request::new(request)).await.map(Response::into_inner)
    }

    async fn set(&self, word: Override, for_ms: u64, dry_run: bool) -> Result<v1::SetOverrideResponse, Status> {
        let request = SetOverrideRequest { r#override: Some(word), for_ms, dry_run };
        self.admin.set_override(from("127.0.0.1:9", request)).await.map(Response::into_inner)
    }
}

fn from<T>(peer: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    let remote_addr = Some(peer.parse().unwrap());
    request.extensions_mut().insert(tonic::transport::server::TcpConnectInfo { local_addr: None, remote_addr });
    request
}

fn drain(service: &str, scope: Scope) -> Override {
    let action = OverrideAction::Drain.into();
    Override { service: service.into(), scope: Some(scope), action, reason: "upgrade".into(), ..Override::default() }
}

fn reason(status: &Status) -> String {
    status.get_error_details().error_info().expect("it has ErrorInfo").reason.clone()
}

#[tokio::test]
async fn status_counts_what_there_is() {
    let balancer = balancer().await;
    let (session, list) = balancer.client("web-1");
    let status = |balancer: &Balancer| {
        let admin = balancer.admin.clone();
        async move { admin.get_status(Request::new(GetStatusRequest {})).await.unwrap().into_inner() }
    };
    let before = status(&balancer).await;
    assert_eq!((before.balancer.as_str(), before.epoch, before.report_streams), ("lb-0", 7, 3));
    assert_eq!((before.pick_streams, before.pick_streams_synced), (1, 0));
    let greeter = &before.services[0];
    assert_eq!((greeter.eligible, greeter.endpoints, greeter.clients), (2, 2, 1));
    assert_eq!(before.sources.iter().find(|s| s.name == "file").unwrap().endpoints, 2);
    assert!(session.applied(&service("greeter"), convert_back(greeter.version.unwrap())));
    assert_eq!(status(&balancer).await.pick_streams_synced, 1);
    drop((session, list));
    assert_eq!(status(&balancer).await.pick_streams, 0);
}

fn convert_back(version: v1::Version) -> lookaside_core::model::Version {
    lookaside_core::model::Version { epoch: version.epoch, sequence: version.sequence }
}

#[tokio::test]
async fn endpoints_have_their_share_and_clients_their_state() {
    let balancer = balancer().await;
    let (_session, _) = balancer.client("web-1");
    let request = ListEndpointsRequest { service: "greeter".into(), excluded_only: false };
    let endpoints = balancer.admin.list_endpoints(Request::new(request)).await.unwrap().into_inner().endpoints;
    assert_eq!(endpoints.iter().map(|e| e.assigned_share).collect::<Vec<_>>(), [0.5, 0.5]);
    assert!(endpoints.iter().all(|e| e.state() == EndpointState::Eligible && !e.check.is_empty()));
    let request = ListEndpointsRequest { service: String::new(), excluded_only: true };
    assert!(balancer.admin.list_endpoints(Request::new(request)).await.unwrap().into_inner().endpoints.is_empty());
    let clients = balancer.admin.list_clients(Request::new(ListClientsRequest::default())).await.unwrap().into_inner();
    assert_eq!((clients.clients[0].client_id.as_str(), clients.clients[0].state.as_str()), ("web-1", "PENDING"));
}

#[tokio::test]
async fn what_nobody_knows_is_not_found() {
    let balancer = balancer().await;
    let services = ListServicesRequest { service: "nobody".into() };
    let status = balancer.admin.list_services(Request::new(services)).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::NotFound, "SERVICE_UNKNOWN"));
    let cases = [
        (ExplainRequest { service: "nobody".into(), ..Default::default() }, "SERVICE_UNKNOWN"),
        (ExplainRequest { service: "greeter".into(), address: "a:1".into(), ..Default::default() }, "ENDPOINT_UNKNOWN"),
        (ExplainRequest { address: "a:1".into(), ..Default::default() }, "ENDPOINT_UNKNOWN"),
        (ExplainRequest { service: "greeter".into(), client_id: "x".into(), ..Default::default() }, "CLIENT_UNKNOWN"),
    ];
    for (request, expected) in cases {
        let status = balancer.explain(request).await.unwrap_err();
        assert_eq!((status.code(), reason(&status).as_str()), (Code::NotFound, expected));
    }
    let cases = [
        (drain("nobody", Scope::Address("10.0.0.1:1".into())), "SERVICE_UNKNOWN"),
        (drain("", Scope::Address("10.9.9.9:1".into())), "ENDPOINT_UNKNOWN"),
        (drain("", Scope::Locality("mars".into())), "ENDPOINT_UNKNOWN"),
        (drain("greeter", Scope::Address("10.9.9.9:1".into())), "ENDPOINT_UNKNOWN"),
    ];
    for (word, expected) in cases {
        let status = balancer.set(word, 0, false).await.unwrap_err();
        assert_eq!((status.code(), reason(&status).as_str()), (Code::NotFound, expected));
    }
    let status = balancer.set(drain("", Scope::WholeService(true)), 0, false).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::InvalidArgument, "SERVICE_MISSING"));
}

#[tokio::test]
async fn an_endpoint_is_explained_as_far_as_the_client_that_has_it() {
    let balancer = balancer().await;
    let (session, _) = balancer.client("web-1");
    let request =
        ExplainRequest { address: "10.0.0.1:1".into(), client_id: "web-1".into(), ..ExplainRequest::default() };
    let explained = balancer.explain(request.clone()).await.unwrap();
    assert_eq!((explained.service.as_str(), explained.address.as_str()), ("greeter", "10.0.0.1:1"));
    assert!(!explained.result.is_empty() && !explained.next.is_empty());
    let verdict = |explained: &v1::Explanation, name: &str| {
        explained.stages.iter().find(|stage| stage.name == name).expect("the stage is there").verdict()
    };
    assert_eq!(verdict(&explained, "sent"), Verdict::Pass);
    assert_eq!(verdict(&explained, "acked"), Verdict::Warn);
    assert!(session.applied(&service("greeter"), convert_back(explained.version.unwrap())));
    assert_eq!(verdict(&balancer.explain(request).await.unwrap(), "acked"), Verdict::Pass);
    let order = ExplainRequest { service: "greeter".into(), ..ExplainRequest::default() };
    let order = balancer.explain(order).await.unwrap();
    assert_eq!(order.order.len(), 2);
    assert!(order.result.starts_with("2 of 2 endpoints offered"), "{}", order.result);
}

#[tokio::test]
async fn an_order_says_what_it_does_and_does_it_unless_it_is_a_dry_run() {
    let balancer = balancer().await;
    let (_session, _) = balancer.client("web-1");
    let word = drain("", Scope::Address("10.0.0.1:1".into()));
    let dry = balancer.set(word.clone(), 0, true).await.unwrap();
    let effect = &dry.effects[0];
    assert_eq!((effect.eligible_before, effect.eligible_after, effect.clients), (2, 1, 1));
    assert!(effect.version.is_none() && effect.summary.contains("gets 100.0 % more calls"), "{}", effect.summary);
    let snapshot = || Arc::clone(&balancer.driver.snapshots().borrow());
    assert_eq!(snapshot().services[&service("greeter")].offered().count(), 2);
    let done = balancer.set(word, 60_000, false).await.unwrap();
    let shown = done.effects[0].version.expect("it is done");
    let greeter = Arc::clone(&snapshot().services[&service("greeter")]);
    assert!(greeter.version.sequence >= shown.sequence);
    assert_eq!(greeter.offered().count(), 1);
    let word = &greeter.endpoint(&address("10.0.0.1:1")).unwrap().overrides[0];
    assert_eq!((word.reason.as_str(), word.replica.as_str()), ("upgrade", "lb-0"));
    assert_eq!(word.expires_at_unix_ms, word.set_at_unix_ms + 60_000);
}

#[tokio::test]
async fn an_order_says_who_begins_and_who_ceases_to_get_calls() {
    let balancer = balancer().await;
    let endpoint = |text, zone, priority| {
        let locality = Locality::parse(zone).unwrap();
        EndpointSpec { locality, priority, ..EndpointSpec::at(address(text)) }
    };
    let endpoints = vec![
        endpoint("10.1.0.1:1", "r/a", 0),
        endpoint("10.1.0.2:1", "r/b", 0),
        endpoint("10.1.0.3:1", "r/c", 1),
        endpoint("10.1.0.4:1", "r/c", 1),
    ];
    list_specs(&balancer.driver, "tiers", endpoints).await;
    let summary = async |word: Override, dry_run| {
        let done = balancer.set(word, 0, dry_run).await.unwrap();
        done.effects[0].summary.clone()
    };
    // Half of a tier is enough for the second to stand by; without any of it, it is called.
    let first = drain("tiers", Scope::Locality("r/a".into()));
    assert_eq!(summary(first, false).await, "each of the others gets 100.0 % more calls");
    let second = drain("tiers", Scope::Locality("r/b".into()));
    assert_eq!(summary(second.clone(), true).await, "2 that got none get calls");
    summary(second.clone(), false).await;
    let back = Override { action: OverrideAction::Undrain.into(), ..second };
    assert_eq!(summary(back, true).await, "2 that got calls get none");
}

#[tokio::test]
async fn decisions_are_told_as_they_happen_after_those_kept() {
    let balancer = balancer().await;
    let request = WatchDecisionsRequest { last: 100, follow: true, ..WatchDecisionsRequest::default() };
    let mut watch = balancer.admin.watch_decisions(Request::new(request)).await.unwrap().into_inner();
    let added = tokio::time::timeout(PATIENCE, watch.next()).await.unwrap().unwrap().unwrap();
    assert_eq!((added.service.as_str(), added.kind.as_str()), ("greeter", "ADDED"));
    balancer.set(drain("greeter", Scope::Address("10.0.0.1:1".into())), 0, false).await.unwrap();
    let drained = async {
        loop {
            let decision = watch.next().await.unwrap().unwrap();
            if decision.reasons.first().is_some_and(|r| r.code() == ReasonCode::AdminDrain) {
                return decision;
            }
        }
    };
    let decision = tokio::time::timeout(PATIENCE, drained).await.expect("it is told");
    assert_eq!((decision.kind.as_str(), decision.address.as_str()), ("STATE", "10.0.0.1:1"));
    // Only the last, only of one reason, and no further.
    let request = WatchDecisionsRequest { last: 5, reason: ReasonCode::AdminDrain.into(), ..Default::default() };
    let watch = balancer.admin.watch_decisions(Request::new(request)).await.unwrap().into_inner();
    let told: Vec<_> = tokio::time::timeout(PATIENCE, watch.collect()).await.expect("it ends");
    assert_eq!(told.len(), 1);
}

#[test]
fn web_pages_are_not_answered() {
    let mut request = Request::new(());
    assert!(refuse_browsers(Request::new(())).is_ok());
    request.metadata_mut().insert("origin", "https://example.org".parse().unwrap());
    assert_eq!(refuse_browsers(request).unwrap_err().code(), Code::PermissionDenied);
}

#[tokio::test]
async fn orders_from_other_machines_are_refused() {
    let balancer = balancer().await;
    for (peer, allowed) in
        [("127.0.0.1:9", true), ("[::1]:9", true), ("[::ffff:127.0.0.1]:9", true), ("10.0.0.9:9", false)]
    {
        let word = drain("greeter", Scope::Address("10.0.0.1:1".into()));
        let request = from(peer, SetOverrideRequest { r#override: Some(word), for_ms: 0, dry_run: true });
        let answer = balancer.admin.set_override(request).await;
        assert_eq!(
            answer.map(|_| ()).map_err(|status| reason(&status)),
            if allowed { Ok(()) } else { Err("LOOPBACK_ONLY".into()) }
        );
    }
    let unknown = balancer.admin.set_override(Request::new(SetOverrideRequest::default())).await.unwrap_err();
    assert_eq!(reason(&unknown), "LOOPBACK_ONLY", "who cannot be seen is not trusted");
}

#[tokio::test]
async fn an_override_that_ends_by_itself_is_gone_after_its_time() {
    let balancer = balancer().await;
    balancer.set(drain("greeter", Scope::Address("10.0.0.1:1".into())), 50, false).await.unwrap();
    let offered = |snapshot: &Arc<Snapshot>| snapshot.services[&service("greeter")].offered().count();
    until(&balancer.driver, |snapshot| offered(snapshot) == 2).await;
}
