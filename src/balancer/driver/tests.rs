use std::time::Duration;

use lookaside_core::{
    event::{Action, CheckOutcome, Scope},
    model::{ClientId, EndpointSpec, Locality, Peer, SourceId},
    snapshot::{EndpointSnapshot, State},
};

use super::*;
use crate::store;

fn service() -> ServiceName {
    ServiceName::parse("s").unwrap()
}

fn address(n: u16) -> Address {
    Address::parse(&format!("10.0.0.1:{n}")).unwrap()
}

fn backend(n: u16) -> Backend {
    Backend { service: service(), address: address(n), incarnation: 1 }
}

fn registered(n: u16) -> Event {
    let endpoint = EndpointSpec { incarnation: 1, ..EndpointSpec::at(address(n)) };
    Event::Registered { service: service(), endpoint }
}

fn drain(n: u16) -> Override {
    Override {
        service: service(),
        scope: Scope::Address(address(n)),
        action: Action::Drain,
        reason: "test".into(),
        actor: String::new(),
        set_at_unix_ms: 1,
        replica: "b".into(),
        expires_at_unix_ms: 0,
        remaining: None,
    }
}

fn begin(overrides: Vec<Override>, store: Option<Store>) -> (Handle, CancellationToken) {
    let stop = CancellationToken::new();
    let start_with = Start { epoch: 9, defaults: ServiceConfig::default(), overrides, kept: None, store };
    let (handle, _) = start(start_with, stop.clone());
    (handle, stop)
}

async fn until(handle: &Handle, is_so: impl Fn(&Snapshot) -> bool) -> Arc<Snapshot> {
    let mut snapshots = handle.snapshots();
    let found = tokio::time::timeout(Duration::from_secs(30), snapshots.wait_for(|s| is_so(s))).await;
    Arc::clone(&found.expect("it never came to that").unwrap())
}

fn endpoint(snapshot: &Snapshot, n: u16) -> Option<&EndpointSnapshot> {
    snapshot.services.get(&service())?.endpoint(&address(n))
}

#[tokio::test(start_paused = true)]
async fn the_first_snapshot_is_there_at_once_and_settling() {
    let (handle, _stop) = begin(Vec::new(), None);
    let first = Arc::clone(&handle.snapshots().borrow());
    assert_eq!(first.version.epoch, 9);
    assert!(first.is_settling());
    until(&handle, |s| !s.is_settling()).await; // By itself: time passes without events.
    assert!(handle.now() >= first.settled_at);
}

#[tokio::test(start_paused = true)]
async fn what_is_asked_is_answered_and_what_is_told_is_applied() {
    let (handle, _stop) = begin(Vec::new(), None);
    handle.ask(registered(1)).await.unwrap();
    let (service, incarnation) = (service(), 0);
    let endpoint_old = EndpointSpec { incarnation, ..EndpointSpec::at(address(1)) };
    let old = handle.ask(Event::Registered { service, endpoint: endpoint_old }).await;
    assert!(matches!(old, Err(Error::Refused(Refusal::OldIncarnation { .. }))), "{old:?}");
    handle.tell(Event::DrainAnnounced { backend: backend(1) }).await;
    until(&handle, |s| endpoint(s, 1).is_some_and(|e| e.state == State::Draining)).await;
}

#[tokio::test(start_paused = true)]
async fn reports_and_outcomes_reach_the_table() {
    let (handle, _stop) = begin(Vec::new(), None);
    for n in [1, 2] {
        handle.ask(registered(n)).await.unwrap();
    }
    handle.report(backend(1), LoadReport { sequence: 2, in_flight: 5, ..LoadReport::default() });
    until(&handle, |s| endpoint(s, 1).is_some_and(|e| e.in_flight == 5)).await;
    let before = until(&handle, |s| endpoint(s, 2).is_some()).await;
    let before = endpoint(&before, 2).unwrap().check_wanted;
    let suspicion = Outcomes { failed: 3, suspect: true, detail: "refused".into(), ..Outcomes::default() };
    let id = ClientId::parse("c").unwrap();
    handle.outcomes(&Client { id, peer: Peer(1), locality: Locality::unknown() }, &service(), &address(2), suspicion);
    until(&handle, |s| endpoint(s, 2).is_some_and(|e| e.check_wanted > before)).await;
}

#[tokio::test(start_paused = true)]
async fn the_last_report_before_a_stream_broke_is_no_sign_of_life() {
    let (handle, _stop) = begin(Vec::new(), None);
    handle.ask(registered(1)).await.unwrap();
    handle.report(backend(1), LoadReport { sequence: 1, in_flight: 5, ..LoadReport::default() });
    handle.tell(Event::ReportStreamBroken { backend: backend(1) }).await; // Both in one turn.
    let after = until(&handle, |s| endpoint(s, 1).is_some_and(|e| e.in_flight == 5)).await;
    assert!(!endpoint(&after, 1).and_then(|e| e.lease.as_ref()).unwrap().connected);
}

#[tokio::test(start_paused = true)]
async fn a_herd_of_events_makes_few_snapshots() {
    let (handle, _stop) = begin(Vec::new(), None);
    let first = handle.snapshots().borrow().version.sequence;
    for n in 1..=2_000 {
        handle.tell(registered(n)).await;
    }
    let all = until(&handle, |s| s.services.get(&service()).is_some_and(|s| s.endpoints.len() == 2_000)).await;
    assert!(all.version.sequence - first <= 3, "{:?}", all.version);
}

#[tokio::test(start_paused = true)]
async fn a_herd_of_events_beyond_a_turn_and_a_queue_is_applied_whole() {
    let (handle, _stop) = begin(Vec::new(), None);
    let many = EVENTS_WAITING_MAX + EVENTS_PER_TURN_MAX;
    for n in 0..many {
        handle.tell(registered(u16::try_from(n % 100 + 1).unwrap())).await;
    }
    handle.tell(registered(101)).await;
    until(&handle, |s| s.services.get(&service()).is_some_and(|s| s.endpoints.len() == 101)).await;
}

#[tokio::test(start_paused = true)]
async fn an_order_answers_with_its_effect_and_the_version_that_shows_it() {
    let (handle, _stop) = begin(Vec::new(), None);
    let stranger = handle.order(vec![drain(1)]).await;
    assert!(matches!(stranger, Err(Error::Refused(Refusal::UnknownService { .. }))), "{stranger:?}");
    for n in [1, 2] {
        handle.ask(registered(n)).await.unwrap();
    }
    let preview = handle.preview(vec![drain(1)]).await.unwrap().remove(0);
    let before = until(&handle, |s| endpoint(s, 2).is_some()).await;
    assert_ne!(endpoint(&before, 1).unwrap().state, State::Draining, "a preview changes nothing");
    let (effect, version) = handle.order(vec![drain(1)]).await.unwrap().remove(0);
    assert_eq!((&effect.addresses, effect.eligible()), (&preview.addresses, preview.eligible()));
    assert_eq!((effect.addresses.as_slice(), effect.eligible()), (&[address(1)][..], [0, 0]));
    let after = Arc::clone(&handle.snapshots().borrow());
    assert_eq!(endpoint(&after, 1).unwrap().state, State::Draining);
    assert_eq!(after.services[&service()].version, version);
}

#[tokio::test(start_paused = true)]
async fn orders_given_together_are_carried_out_in_one_turn_or_not_at_all() {
    let (handle, _stop) = begin(Vec::new(), None);
    for n in [1, 2] {
        handle.ask(registered(n)).await.unwrap();
    }
    until(&handle, |s| endpoint(s, 2).is_some()).await;
    let stranger = Override { service: ServiceName::parse("nobody").unwrap(), ..drain(2) };
    let refused = handle.order(vec![drain(1), stranger]).await;
    assert!(matches!(refused, Err(Error::Refused(Refusal::UnknownService { .. }))), "{refused:?}");
    until(&handle, |s| endpoint(s, 1).unwrap().state != State::Draining).await;
    let done = handle.order(vec![drain(1), drain(2)]).await.unwrap();
    assert_eq!(done[0].1, done[1].1, "one version shows both");
    let after = Arc::clone(&handle.snapshots().borrow());
    assert!([1, 2].iter().all(|n| endpoint(&after, *n).unwrap().state == State::Draining));
}

#[tokio::test(start_paused = true)]
async fn an_order_is_the_newest_even_when_the_wall_clock_was_set_back() {
    let future = Override { set_at_unix_ms: u64::MAX - 5, ..drain(1) };
    let (handle, _stop) = begin(vec![future], None);
    handle.ask(registered(1)).await.unwrap();
    until(&handle, |s| endpoint(s, 1).is_some_and(|e| e.state == State::Draining)).await;
    let undrain = Override { action: Action::Undrain, ..drain(1) };
    handle.order(vec![undrain]).await.unwrap();
    let after = Arc::clone(&handle.snapshots().borrow());
    assert_ne!(endpoint(&after, 1).unwrap().state, State::Draining);
}

#[tokio::test]
async fn an_order_outlives_a_restart() {
    let directory = store::tests::directory("restart");
    let (store, tasks, stop) = store::tests::begin(&directory);
    let (handle, _stop) = begin(Vec::new(), Some(store));
    handle.ask(registered(1)).await.unwrap();
    handle.order(vec![drain(1)]).await.unwrap();
    assert_eq!(store::load(&directory, unix_ms()).overrides, [drain(1)], "it is on disk when it is answered");
    stop.cancel();
    tasks.wait().await;

    let (handle, _stop) = begin(store::load(&directory, unix_ms()).overrides, None);
    handle.ask(registered(1)).await.unwrap();
    until(&handle, |s| endpoint(s, 1).is_some_and(|e| e.state == State::Draining)).await;
    std::fs::remove_dir_all(directory).unwrap();
}

#[tokio::test]
async fn what_was_served_is_served_again_from_the_first_snapshot_on() {
    let directory = store::tests::directory("again");
    let (store, tasks, disk) = store::tests::begin(&directory);
    let (handle, stop) = begin(Vec::new(), Some(store));
    for n in [1, 2] {
        handle.ask(registered(n)).await.unwrap();
        let outcome = CheckOutcome::Passed;
        handle.ask(Event::Checked { service: service(), address: address(n), outcome }).await.unwrap();
    }
    until(&handle, |s| endpoint(s, 2).is_some_and(|e| e.state == State::Eligible)).await;
    stop.cancel();
    while handle.ask(registered(3)).await.is_ok() {}
    disk.cancel();
    tasks.wait().await;

    let start_with = Start {
        epoch: 10,
        defaults: ServiceConfig::default(),
        overrides: Vec::new(),
        kept: store::load(&directory, unix_ms()).snapshot,
        store: None,
    };
    let (handle, _) = start(start_with, CancellationToken::new());
    let first = Arc::clone(&handle.snapshots().borrow());
    for n in [1, 2] {
        let restored = endpoint(&first, n).unwrap();
        assert_eq!(restored.state, State::Eligible);
        assert!(restored.lease.as_ref().unwrap().restored);
    }
    std::fs::remove_dir_all(directory).unwrap();
}

#[tokio::test]
async fn words_that_backends_repeat_are_saved_once_a_second_and_orders_at_once() {
    let directory = store::tests::directory("pace-of-words");
    let (store, ..) = store::tests::begin(&directory);
    let saved = store.clone();
    let (handle, _stop) = begin(Vec::new(), Some(store));
    handle.ask(registered(1)).await.unwrap();
    let began = tokio::time::Instant::now();
    for set_at_unix_ms in 1..=200 {
        handle.ask(Event::OverrideSet { word: Override { set_at_unix_ms, ..drain(1) } }).await.unwrap();
    }
    saved.settled(Duration::from_secs(10)).await;
    // One file for each second begun, however many words.
    let most = began.elapsed().as_secs() + 1;
    assert!(saved.overrides_saved() <= most, "{} saves in {:?}", saved.overrides_saved(), began.elapsed());
    handle.order(vec![drain(1)]).await.unwrap();
    let kept = store::load(&directory, unix_ms()).overrides;
    assert!(kept[0].set_at_unix_ms > 200, "{kept:?}");
    std::fs::remove_dir_all(directory).unwrap();
}

#[tokio::test(start_paused = true)]
async fn decisions_are_kept_and_told_each_once() {
    let (handle, _stop) = begin(Vec::new(), None);
    handle.ask(registered(1)).await.unwrap();
    until(&handle, |s| endpoint(s, 1).is_some()).await;
    let (kept, mut live) = handle.decisions();
    assert_eq!(kept.first().and_then(|r| r.decision.address.clone()), Some(address(1)));
    handle.order(vec![drain(1)]).await.unwrap();
    let next = tokio::time::timeout(Duration::from_secs(1), live.recv()).await.unwrap().unwrap();
    let (kept, _) = handle.decisions();
    assert!(kept.iter().filter(|r| Arc::ptr_eq(&r.decision, &next.decision)).count() == 1);
}

#[tokio::test(start_paused = true)]
async fn a_stopped_driver_answers_everybody() {
    let (handle, stop) = begin(Vec::new(), None);
    stop.cancel();
    assert_eq!(handle.ask(registered(1)).await, Err(Error::Stopped));
    handle.tell(registered(1)).await;
}

#[tokio::test(start_paused = true)]
async fn the_file_tells_its_services_and_their_endpoints() {
    use crate::{config::Live, source::file::File};
    let text = "services: [{name: s, lease: 20s, endpoints: ['10.0.0.1:1']}, {name: t}]";
    let config = crate::config::Config::parse("f", text).unwrap();
    let (handle, _stop) = begin(Vec::new(), None);
    let (in_force, _live) = Live::start(config, 0);
    File::new(SourceId::parse("file").unwrap(), in_force).begin(&handle).await.unwrap();
    let snapshot = until(&handle, |s| s.services.len() == 2).await;
    assert!(endpoint(&snapshot, 1).is_some());
    assert!(!snapshot.services[&service()].settling, "a full answer ends settling");
    assert_eq!(snapshot.services[&service()].config.lease, Duration::from_secs(20));
}
