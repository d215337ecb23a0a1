use std::collections::BTreeMap;

use super::{super::*, *};

const SEED: u64 = 7;
const KEYS: u64 = 5_000;

/// A client of endpoints with these names and weights, all of them connected.
struct World {
    fleet: Arc<Fleet>,
    peers: BTreeMap<String, Arc<Peer>>,
    rng: Rng,
}

type Listed<'a> = (&'a str, u32);

impl World {
    fn new() -> Self {
        Self { fleet: Arc::new(Fleet::new(1)), peers: BTreeMap::new(), rng: Rng::from_seed(1) }
    }

    fn peer(&mut self, name: &str) -> Arc<Peer> {
        let id = self.peers.len() as u64;
        self.peers.entry(name.to_owned()).or_insert_with(|| Arc::new(Peer::new(id))).clone()
    }

    fn picker(&mut self, bound_milli: u32, listed: &[Listed<'_>], away: &[&str]) -> Picker<String> {
        let keyed: Vec<(String, u64, u32)> =
            listed.iter().map(|(name, weight)| ((*name).to_owned(), self.peer(name).id(), *weight)).collect();
        let keyed = keyed.iter().map(|(key, id, weight)| Keyed { id: *id, key, priority: 0, weight: *weight });
        let rings = Rings::new(SEED, bound_milli, keyed, &Rings::default());
        let offers: Vec<Offer<String>> = listed
            .iter()
            .map(|(name, weight)| Offer {
                peer: self.peer(name),
                weight: *weight,
                capacity_milli: 0,
                priority: 0,
                ready: !away.contains(name),
                item: (*name).to_owned(),
            })
            .collect();
        Picker::new(Policy::RingHash, self.fleet.clone(), offers).with_rings(&rings)
    }

    /// Where a call of each key goes while nothing else is under way.
    fn homes(&mut self, picker: &Picker<String>) -> Vec<String> {
        (0..KEYS).map(|key| self.call(picker, key)).collect()
    }

    fn call(&mut self, picker: &Picker<String>, key: u64) -> String {
        let chosen = self.begin(picker, key);
        picker.ended(&self.peers[&chosen].clone(), Class::Ok, Some(1), true, None, 2);
        chosen
    }

    fn begin(&mut self, picker: &Picker<String>, key: u64) -> String {
        let key = Key::of(key.to_le_bytes());
        picker.pick_for(Some(key), 1, &mut self.rng, &[]).expect("an endpoint").item.clone()
    }
}

fn fleet(count: u32) -> Vec<String> {
    (0..count).map(|n| format!("10.0.0.{n}:50051")).collect()
}

fn even(names: &[String]) -> Vec<Listed<'_>> {
    names.iter().map(|name| (name.as_str(), 100)).collect()
}

fn shares(homes: &[String]) -> BTreeMap<&str, f64> {
    let mut shares = BTreeMap::new();
    for home in homes {
        *shares.entry(home.as_str()).or_default() += 1.0 / homes.len() as f64;
    }
    shares
}

#[test]
fn who_leaves_moves_its_own_keys_alone_and_has_them_again_when_it_returns() {
    let names = fleet(10);
    let mut world = World::new();
    let whole = world.picker(1_250, &even(&names), &[]);
    let before = world.homes(&whole);
    for leaver in 0..10 {
        let rest: Vec<Listed<'_>> = even(&names).into_iter().filter(|(name, _)| *name != names[leaver]).collect();
        let (left, lost) = (world.picker(1_250, &rest, &[]), world.picker(1_250, &even(&names), &[&names[leaver]]));
        for without in [left, lost] {
            let after = world.homes(&without);
            for (before, after) in before.iter().zip(&after) {
                assert_ne!(*after, names[leaver]);
                assert!(before == after || *before == names[leaver], "{before} -> {after}, and {} left", names[leaver]);
            }
        }
    }
    assert_eq!(world.homes(&whole), before);
}

#[test]
fn who_comes_takes_its_share_from_all_and_moves_nothing_between_the_others() {
    let names = fleet(11);
    let mut world = World::new();
    let ten = world.picker(1_250, &even(&names[..10]), &[]);
    let before = world.homes(&ten);
    let mut taken: Vec<bool> = Vec::new();
    // It warms up on its way to its full share: keys go to it and never back.
    for weight in [10, 30, 60, 100] {
        let mut listed = even(&names[..10]);
        listed.push((&names[10], weight));
        let picker = world.picker(1_250, &listed, &[]);
        let after = world.homes(&picker);
        let moved: Vec<bool> = after.iter().map(|home| *home == names[10]).collect();
        assert!(before.iter().zip(&after).all(|(before, after)| before == after || *after == names[10]));
        assert!(taken.iter().zip(&moved).all(|(earlier, now)| !*earlier || *now), "what it has it keeps");
        let share = shares(&after)[names[10].as_str()];
        let due = f64::from(weight) / f64::from(1_000 + weight);
        assert!((share / due - 1.0).abs() < 0.15 + 2.0 / f64::from(weight).sqrt(), "share {share}, due {due}");
        taken = moved;
    }
}

#[test]
fn shares_are_as_weights() {
    // The lightest has 64 places: one standard deviation is an eighth.
    for scale in [1, 25, 100, 5_000] {
        let names = fleet(12);
        let listed: Vec<Listed<'_>> =
            names.iter().enumerate().map(|(at, name)| (name.as_str(), scale * (1 + at as u32 % 3))).collect();
        let mut world = World::new();
        let picker = world.picker(0, &listed, &[]);
        let homes = world.homes(&picker);
        let shares = shares(&homes);
        for (name, weight) in &listed {
            let due = f64::from(*weight) / f64::from(scale * 24);
            assert!((shares[name] / due - 1.0).abs() < 0.45, "weight {weight}: {} of {due}", shares[name]);
        }
    }
}

#[test]
fn rings_agree_whatever_the_order_of_the_list() {
    let names = fleet(20);
    let mut listed = even(&names);
    let mut world = World::new();
    let picker = world.picker(1_250, &listed, &[]);
    let homes = world.homes(&picker);
    listed.reverse();
    let picker = world.picker(1_250, &listed, &[]);
    assert_eq!(world.homes(&picker), homes);
    // What the wire contract says of places, once and for all: another library must come to the same.
    assert_eq!(Key::of("user-7").place(SEED), 0xe118_fa5c_5cbb_f3ee);
    assert_eq!(super::super::rng::step(Key::of("pod-1").place(SEED), 0), 0xd448_72fe_f988_8ff6);
}

#[test]
fn no_endpoint_goes_above_the_bound_and_no_call_is_refused() {
    for bound_milli in [1_050, 1_250, 2_000] {
        let names = fleet(10);
        let mut world = World::new();
        let picker = world.picker(bound_milli, &even(&names), &[]);
        // Every second call is of one key.
        for call in 0..2_000_u64 {
            world.begin(&picker, if call % 2 == 0 { 0 } else { call });
            let mean = f64::from(call as u32 + 1) / 10.0;
            let bound = (mean * f64::from(bound_milli) / 1_000.0).ceil().max(f64::from(CALLS_SPARED));
            let most = world.peers.values().map(|peer| peer.in_flight()).max().unwrap_or(0);
            assert!(f64::from(most) <= bound, "{most} in flight, {bound} allowed of {}", call + 1);
        }
    }
}

#[test]
fn a_bound_of_nothing_is_none() {
    let names = fleet(5);
    let mut world = World::new();
    let picker = world.picker(0, &even(&names), &[]);
    let home = world.begin(&picker, 1);
    assert!((0..500).all(|_| world.begin(&picker, 1) == home));
}

#[test]
fn who_is_tried_is_passed_over_and_the_next_one_is_the_same_for_everybody() {
    let names = fleet(6);
    let mut world = World::new();
    let picker = world.picker(1_250, &even(&names), &[]);
    for key in 0..200_u64 {
        let key = Key::of(key.to_le_bytes());
        let pick = |tried: &[u64], seed| {
            let chosen = picker.pick_for(Some(key), 1, &mut Rng::from_seed(seed), tried).expect("an endpoint");
            picker.ended(&chosen.peer, Class::Ok, Some(1), true, None, 2);
            chosen.peer.id()
        };
        let first = pick(&[], 1);
        let second = pick(&[first], 1);
        assert_ne!(first, second);
        assert_eq!((first, second), (pick(&[], 2), pick(&[first], 2)));
    }
}

#[test]
fn an_endpoint_whose_calls_fail_keeps_no_key_but_the_one_that_finds_out() {
    let names = fleet(6);
    let mut world = World::new();
    let picker = world.picker(1_250, &even(&names), &[]);
    let home = world.call(&picker, 1);
    let peer = world.peers[&home].clone();
    for _ in 0..FAILURES_IN_A_ROW {
        assert_eq!(world.begin(&picker, 1), home);
        picker.ended(&peer, Class::Endpoint, Some(1), true, None, 2);
    }
    assert!(peer.is_aside());
    let elsewhere = world.call(&picker, 1);
    assert_ne!(elsewhere, home);
    let key = Some(Key::of(1_u64.to_le_bytes()));
    let due = PAUSE_US_MAX * 2;
    let canary = picker.pick_for(key, due, &mut world.rng, &[]).expect("an endpoint");
    assert_eq!(canary.item, home, "the pause is over");
    picker.ended(&peer, Class::Ok, Some(due), true, None, due + 1);
    assert_eq!(world.call(&picker, 1), home);
}

#[test]
fn calls_without_a_key_go_by_load() {
    let names = fleet(4);
    let mut world = World::new();
    let picker = world.picker(1_250, &even(&names), &[]);
    for _ in 0..400 {
        let rng = &mut world.rng;
        picker.pick(1, rng, &[]).expect("an endpoint");
    }
    assert!(world.peers.values().all(|peer| (90..=110).contains(&peer.in_flight())), "{:?}", world.peers);
}

#[test]
fn a_ring_is_kept_as_long_as_it_is_right_and_never_grows_past_its_limit() {
    let names = fleet(3_000);
    let listed = |weight: u32| {
        let keyed = names.iter().enumerate();
        keyed.map(move |(id, key)| Keyed { id: id as u64, key, priority: 0, weight }).collect::<Vec<_>>()
    };
    let first = Rings::new(SEED, 1_250, listed(100), &Rings::default());
    let ring = |rings: &Rings| rings.of_tier(0).expect("a tier").clone();
    assert!(Arc::ptr_eq(&ring(&first), &ring(&Rings::new(SEED, 1_250, listed(100), &first))));
    for other in [Rings::new(SEED, 1_500, listed(100), &first), Rings::new(8, 1_250, listed(100), &first)] {
        assert!(!Arc::ptr_eq(&ring(&first), &ring(&other)));
    }
    for weight in [1, 100, 10_000, 100_000_000] {
        let ring = ring(&Rings::new(SEED, 1_250, listed(weight), &first));
        assert!(ring.places.len() <= PLACES_MAX && ring.places.len() >= names.len() * 16, "{}", ring.places.len());
    }
    let none = Rings::new(SEED, 1_250, listed(0), &first);
    assert!(none.of_tier(0).is_none());
}

#[test]
fn an_endpoint_that_alone_is_called_is_left_alone_for_longer_each_time_that_it_fails() {
    const PERIOD_US: u64 = 2_000_000;
    let names = fleet(6);
    let mut world = World::new();
    let picker = world.picker(1_250, &even(&names), &[]);
    let bad = world.call(&picker, 7);
    let mut failed = 0;
    for call in 1..=100 {
        let now_us = call * PERIOD_US;
        let chosen =
            picker.pick_for(Some(Key::of(7_u64.to_le_bytes())), now_us, &mut world.rng, &[]).expect("an endpoint");
        let class = if chosen.item == bad { Class::Endpoint } else { Class::Ok };
        failed += u64::from(class == Class::Endpoint);
        picker.ended(&chosen.peer.clone(), class, Some(now_us), true, None, now_us + 1);
    }
    // Five, and then after 1, 2, 4, 8, 16 s and each 30 s.
    assert!((9..=15).contains(&failed), "{failed}");
}
