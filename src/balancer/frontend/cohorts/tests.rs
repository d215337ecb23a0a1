use lookaside_core::{
    config::PolicyKind,
    event::{Backend, CheckOutcome, Event, LoadReport},
    model::{EndpointSpec, SourceId},
    policy::ListMode,
};

use super::*;
use crate::testing::{address, driver, driver_with, list, service, until};

fn assignment(weights: &[(&str, u32)]) -> Assignment {
    let endpoints = weights.iter().map(|(at, weight)| policy::Assigned {
        spec: lookaside_core::model::EndpointSpec::at(address(at)),
        priority: 0,
        weight: *weight,
        capacity_milli: 0,
        reasons: Vec::new(),
        is_keyed_by_instance: false,
    });
    Assignment {
        service: service("greeter"),
        version: Default::default(),
        digest: 0,
        complete: true,
        mode: ListMode::Normal,
        note: String::new(),
        endpoints: endpoints.collect(),
        policy: PolicyKind::LeastLoad,
        ring: None,
    }
}

#[test]
fn an_address_is_found_in_a_list_of_any_order() {
    let list = List::new(assignment(&[("c:1", 1), ("a:1", 2), ("b:1", 0)]));
    let weight = |at| list.place(&address(at)).map(|place| place.weight);
    assert_eq!([weight("a:1"), weight("b:1"), weight("c:1"), weight("d:1")], [Some(2), Some(0), Some(1), None]);
}

#[tokio::test]
async fn who_comes_late_gets_the_newest_list_though_nobody_has_looked_since() {
    let stop = CancellationToken::new();
    let driver = driver(&stop);
    list(&driver, "greeter", &["10.0.0.1:1"]).await;
    let cohorts = Cohorts::new(driver.clone());
    let cohort = Cohort { seed: 0, locality: Locality::unknown() };
    let _early = cohorts.subscribe(&service("greeter"), &cohort);
    list(&driver, "greeter", &["10.0.0.2:1"]).await;
    let late = cohorts.subscribe(&service("greeter"), &cohort);
    match &**late.borrow() {
        Answer::List(published) => assert!(published.whole.list.place(&address("10.0.0.2:1")).is_some()),
        other => panic!("{other:?} is no list"),
    }
    stop.cancel();
}

#[tokio::test]
async fn clients_from_more_places_than_there_can_be_share_the_lists_of_an_unknown_place() {
    let stop = CancellationToken::new();
    let cohorts = Cohorts::new(driver(&stop));
    let from = |place: &str| Cohort { seed: 0, locality: Locality::parse(place).unwrap() };
    let answers: Vec<_> = (0..2 * COHORTS_PER_SERVICE_MAX)
        .map(|number| cohorts.subscribe(&service("greeter"), &from(&format!("eu/a/{number}"))))
        .collect();
    assert_eq!(cohorts.count(), COHORTS_PER_SERVICE_MAX + 1);
    assert_eq!(answers.len(), 2 * COHORTS_PER_SERVICE_MAX);
    stop.cancel();
}

#[tokio::test]
async fn a_place_without_an_endpoint_has_the_list_of_an_unknown_one_and_any_other_its_own() {
    let stop = CancellationToken::new();
    let mut config = ServiceConfig::default();
    config.locality.prefer_zone = true;
    let driver = driver_with(config, &stop);
    let (source, name) = (SourceId::parse("file").unwrap(), service("greeter"));
    let place = |text: &str| Locality::parse(text).unwrap();
    let endpoints = ["eu/a/1", "eu/a/2", "eu/b", "us", ""].iter().enumerate().map(|(number, at)| EndpointSpec {
        locality: place(at),
        ..EndpointSpec::at(address(&format!("10.0.0.{number}:1")))
    });
    let endpoints: Vec<_> = endpoints.collect();
    let listed =
        Event::EndpointsListed { source, service: name.clone(), endpoints: endpoints.clone(), detail: String::new() };
    driver.ask(listed).await.unwrap();
    for endpoint in endpoints {
        let (service, address) = (name.clone(), endpoint.address);
        driver.ask(Event::Checked { service, address, outcome: CheckOutcome::Passed }).await.unwrap();
    }
    until(&driver, |s| s.services.get(&name).is_some_and(|s| s.endpoints.iter().all(|e| e.state.is_offered()))).await;
    let snapshot = Arc::clone(&driver.snapshots().borrow());
    let mut lists = Lists::of(&snapshot.services[&name], 1);
    let invented = (0..100).map(|number| format!("eu/a/x{number}")).chain((0..100).map(|n| format!("x/{n}")));
    for claimed in
        ["eu/a/1", "eu/a", "eu/b", "eu/b/9", "eu", "us", "us/a", ""].map(str::to_owned).into_iter().chain(invented)
    {
        let cohort = Cohort { seed: 3, locality: place(&claimed) };
        let made = lists.made(&cohort).list.assignment.clone();
        assert_eq!(made, policy::assign(&snapshot.services[&name], &cohort), "{claimed}");
    }
    assert_eq!(lists.made.len(), 4, "eu/a, eu/b, us and nowhere");
    stop.cancel();
}

#[tokio::test]
async fn an_answer_never_goes_back_to_an_older_version() {
    let stop = CancellationToken::new();
    let driver = driver(&stop);
    list(&driver, "greeter", &["10.0.0.1:1", "10.0.0.2:1"]).await;
    let cohorts = Arc::new(Cohorts::new(driver.clone()));
    tokio::spawn(Arc::clone(&cohorts).follow(stop.clone()));
    let cohort = Cohort { seed: 0, locality: Locality::unknown() };
    let mut answer = cohorts.subscribe(&service("greeter"), &cohort);
    let version = |answer: &Answer| match answer {
        Answer::List(list) => list.version,
        other => panic!("{other:?} is no list"),
    };
    let mut last = version(&answer.borrow_and_update());
    for round in 3..30 {
        list(&driver, "greeter", &["10.0.0.1:1", &format!("10.0.0.{round}:1")]).await;
        let backend = Backend { service: service("greeter"), address: address("10.0.0.1:1"), incarnation: 0 };
        driver.tell(Event::LoadReported { backend, load: LoadReport::default() }).await;
        if answer.has_changed().unwrap() {
            let now = version(&answer.borrow_and_update());
            assert!(now > last, "{now:?} after {last:?}");
            last = now;
        }
    }
    stop.cancel();
}
