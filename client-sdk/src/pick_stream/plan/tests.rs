//! Under a virtual clock: who is asked next, and when.

use super::*;

fn plan(balancers: &[&str], seed: u64) -> Plan {
    let balancers: Vec<String> = balancers.iter().map(|balancer| (*balancer).to_owned()).collect();
    Plan::new(&balancers, Rng::from_seed(seed))
}

fn refused() -> Refusal {
    // Not "unreachable": that is known to every test of this process.
    Refusal::of_stream("refused")
}

fn text(place: Option<Place>) -> String {
    place.map_or_else(|| "nobody".to_owned(), |place| place.address.to_string())
}

#[tokio::test(start_paused = true)]
async fn clients_begin_at_different_balancers() {
    let now = Instant::now();
    let mut first = BTreeMap::new();
    for seed in 0..300 {
        let mut plan = plan(&["10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1"], seed);
        *first.entry(text(plan.next(now))).or_insert(0) += 1;
    }
    assert!(first.len() == 3 && first.values().all(|count| (70..130).contains(count)), "{first:?}");
}

#[tokio::test(start_paused = true)]
async fn each_balancer_waits_for_its_own_failures_alone() {
    let mut plan = plan(&["10.0.0.1:1", "10.0.0.2:1"], 3);
    let mut now = Instant::now();
    let first = plan.next(now).unwrap();
    plan.failed(&first, &refused(), now);
    let second = plan.next(now).unwrap();
    assert_ne!(first, second, "the other one is asked at once");
    assert_eq!(plan.next(now), None, "it is being asked");
    plan.reached(&second, now);
    for _ in 0..20 {
        // It takes the connection and ends the stream, again and again.
        plan.failed(&second, &refused(), now);
        now += RECONNECT_LONGEST;
        assert!(plan.due(now).unwrap() <= now, "no back-off is longer than five seconds");
        let again = plan.next(now).unwrap();
        plan.failed(&again, &refused(), now);
    }
}

#[tokio::test(start_paused = true)]
async fn one_that_was_silent_while_another_answered_is_not_the_next_choice() {
    let mut plan = plan(&["10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1"], 5);
    let now = Instant::now();
    let (silent, answering) = (plan.next(now).unwrap(), plan.next(now).unwrap());
    plan.reached(&answering, now);
    let later = now + 2 * RECONNECT_LONGEST;
    plan.failed(&answering, &refused(), later);
    let next = plan.next(later).unwrap();
    assert!(next != silent && next != answering);
}

#[tokio::test(start_paused = true)]
async fn of_those_that_failed_the_one_that_failed_the_longest_ago_comes_first() {
    for seed in 0..20 {
        let mut plan = plan(&["10.0.0.1:1", "10.0.0.2:1"], seed);
        let now = Instant::now();
        let (first, second) = (plan.next(now).unwrap(), plan.next(now).unwrap());
        plan.failed(&first, &refused(), now);
        plan.failed(&second, &refused(), now + Duration::from_millis(1));
        assert_eq!(plan.next(now + 2 * RECONNECT_LONGEST), Some(first.clone()));
        plan.failed(&first, &refused(), now + Duration::from_millis(2));
        assert_eq!(plan.next(now + 2 * RECONNECT_LONGEST), Some(second));
    }
}

#[tokio::test(start_paused = true)]
async fn what_another_channel_could_not_reach_is_asked_last_and_asked_all_the_same() {
    let (lost, fine) = ("10.9.0.1:1", "10.9.0.2:1");
    let now = Instant::now();
    let mut other = plan(&[lost], 1);
    let place = other.next(now).unwrap();
    other.failed(&place, &Refusal::unreachable("refused".to_owned()), now);
    for seed in 0..20 {
        let mut plan = plan(&[lost, fine], seed);
        assert_eq!([text(plan.next(now)), text(plan.next(now))], [fine, lost]);
    }
    other.reached(&place, now);
    let firsts: Vec<String> = (0..20).map(|seed| text(plan(&[lost, fine], seed).next(now))).collect();
    assert!(firsts.iter().any(|first| first == lost), "it is back");
}

#[tokio::test(start_paused = true)]
async fn pushback_is_honoured() {
    for (asked, at_least, at_most) in [(2, 2_200, 3_000), (60, 66_000, 90_000)] {
        let mut plan = plan(&["10.0.0.1:1"], asked);
        let now = Instant::now();
        let place = plan.next(now).unwrap();
        plan.failed(&place, &Refusal { pushback: Some(Duration::from_secs(asked)), ..refused() }, now);
        let wait_ms = (plan.due(now).unwrap() - now).as_millis();
        assert!((at_least..=at_most).contains(&wait_ms), "{wait_ms}");
        assert_eq!(plan.next(now + Duration::from_millis(1)), None);
    }
}

#[tokio::test(start_paused = true)]
async fn a_redirect_is_followed_in_its_order_and_then_the_known_ones_return() {
    let mut plan = plan(&["10.0.0.1:1"], 0);
    let now = Instant::now();
    let place = plan.next(now).unwrap();
    let to = ["10.0.0.8:1".to_owned(), "nonsense".to_owned(), "http://10.0.0.9:1".to_owned()];
    assert!(plan.redirect(&place, &to, now).await);
    assert_eq!([text(plan.next(now)), text(plan.next(now))], ["10.0.0.8:1", "10.0.0.9:1"]);
    assert_eq!(text(plan.next(now + RECONNECT_LONGEST)), "10.0.0.1:1");
}

#[tokio::test(start_paused = true)]
async fn redirects_without_end_are_not_followed() {
    let mut plan = plan(&["10.0.0.1:1"], 0);
    let now = Instant::now();
    let mut place = plan.next(now).unwrap();
    let mut followed = 0;
    while followed < 20 && plan.redirect(&place, &["10.0.0.8:1".to_owned()], now).await {
        place = plan.next(now).unwrap();
        followed += 1;
    }
    assert_eq!(followed, REDIRECTS_MAX);
}

#[tokio::test(start_paused = true)]
async fn balancers_that_all_leave_are_not_asked_in_a_circle_without_a_pause() {
    let mut plan = plan(&["10.0.0.1:1", "10.0.0.2:1"], 0);
    let now = Instant::now();
    let first = plan.next(now).unwrap();
    plan.reached(&first, now);
    assert!(plan.redirect(&first, &[], now).await, "the other one may serve");
    let second = plan.next(now).unwrap();
    assert_ne!(first, second);
    plan.reached(&second, now);
    assert!(!plan.redirect(&second, &[], now).await);
}

#[tokio::test(start_paused = true)]
async fn a_name_is_all_its_addresses_and_new_ones_are_found_when_it_is_asked_again() {
    let at = |port| SocketAddr::from(([127, 0, 0, 1], port));
    let name = "plan.test:7400";
    resolve::say(name, Some(Err(())));
    let mut plan = plan(&[name], 1);
    plan.resolve().await;
    let now = Instant::now();
    assert_eq!(plan.next(now), None);
    assert!(plan.trouble().unwrap().contains("SERVFAIL"));
    resolve::say(name, Some(Ok(vec![at(1), at(2)])));
    plan.resolve().await;
    let mut places = [plan.next(now).unwrap(), plan.next(now).unwrap()];
    places.sort();
    assert_eq!(places.clone().map(|place| place.address), [at(1), at(2)]);
    assert!(places.iter().all(|place| &*place.name == name));
    resolve::say(name, Some(Ok(vec![at(2), at(3)])));
    plan.resolve().await;
    assert_eq!(plan.next(now).unwrap().address, at(3), "the others are being asked, or are gone");
    assert_eq!(plan.next(now), None);
}
