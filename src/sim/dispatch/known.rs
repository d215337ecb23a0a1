//! What a client knows of each endpoint of its list, and draws from those that may be used. Shared by the baselines.

use lookaside_sdk::picker::Rng;

use super::Listed;

/// Draws that may hit an endpoint which was tried, before the others are looked through.
const DRAWS_MAX: usize = 8;

/// The endpoints of a list, each with something known of it.
#[derive(Debug, Default)]
pub(super) struct Known<T> {
    /// By their numbers.
    all: Vec<Place<T>>,
    /// Places of those that may be used: with a weight, connected, of the best tier that has one.
    usable: Vec<usize>,
}

#[derive(Debug)]
struct Place<T> {
    endpoint: u32,
    incarnation: u64,
    state: T,
}

impl<T: Default> Known<T> {
    /// The list as it is from now on. What is known stays with who stays; a new start begins anew.
    pub(super) fn list(&mut self, list: &[Listed]) {
        let mut listed: Vec<&Listed> = list.iter().collect();
        listed.sort_by_key(|listed| listed.endpoint);
        let mut before = std::mem::take(&mut self.all).into_iter().peekable();
        for listed in &listed {
            while before.next_if(|place| place.endpoint < listed.endpoint).is_some() {}
            let same = |place: &Place<T>| (place.endpoint, place.incarnation) == (listed.endpoint, listed.incarnation);
            let state = before.next_if(same).map(|place| place.state).unwrap_or_default();
            self.all.push(Place { endpoint: listed.endpoint, incarnation: listed.incarnation, state });
        }
        let may_be_used = |listed: &Listed| listed.ready && listed.weight > 0;
        let best = listed.iter().filter(|listed| may_be_used(listed)).map(|listed| listed.priority).min();
        let usable = |listed: &Listed| may_be_used(listed) && Some(listed.priority) == best;
        self.usable = (0..listed.len()).filter(|at| usable(listed[*at])).collect();
    }
}

impl<T> Known<T> {
    /// How many may be used.
    pub(super) fn usable(&self) -> usize {
        self.usable.len()
    }

    /// The number of one that may be used.
    pub(super) fn endpoint(&self, at: usize) -> u32 {
        self.all[self.usable[at]].endpoint
    }

    /// What is known of one that may be used.
    pub(super) fn state(&mut self, at: usize) -> &mut T {
        &mut self.all[self.usable[at]].state
    }

    /// What is known of each that may be used.
    pub(super) fn states(&self) -> impl Iterator<Item = &T> {
        self.usable.iter().map(|at| &self.all[*at].state)
    }

    /// What is known of an endpoint; `None` if it is in no list.
    pub(super) fn find(&mut self, endpoint: u32) -> Option<&mut T> {
        let at = self.all.binary_search_by_key(&endpoint, |place| place.endpoint).ok()?;
        Some(&mut self.all[at].state)
    }

    /// Whether an endpoint may be used.
    pub(super) fn may_use(&self, endpoint: u32) -> bool {
        self.usable.binary_search_by_key(&endpoint, |at| self.all[*at].endpoint).is_ok()
    }

    /// One of them at random; one of `tried` only if there is no other.
    pub(super) fn draw(&self, rng: &mut Rng, tried: &[u32]) -> Option<usize> {
        self.draw_but(rng, |at| tried.contains(&self.endpoint(at)))
            .or_else(|| (!self.usable.is_empty()).then(|| rng.below(self.usable.len() as u64) as usize))
    }

    /// Two of them at random, as `draw` does; `None` for the second if there is but one.
    pub(super) fn draw_two(&self, rng: &mut Rng, tried: &[u32]) -> Option<(usize, Option<usize>)> {
        let first = self.draw(rng, tried)?;
        let second = self.draw_but(rng, |at| at == first || tried.contains(&self.endpoint(at)));
        Some((first, second))
    }

    fn draw_but(&self, rng: &mut Rng, without: impl Fn(usize) -> bool) -> Option<usize> {
        let count = self.usable.len();
        let drawn = (0..DRAWS_MAX.min(count)).map(|_| rng.below(count as u64) as usize).find(|at| !without(*at));
        // The others begin anywhere, so that nobody gets more than another.
        drawn.or_else(|| {
            let start = rng.below(count as u64) as usize;
            (0..count).map(|at| (start + at) % count).find(|at| !without(*at))
        })
    }
}

/// Endpoints that are there, for tests.
#[cfg(test)]
pub(super) fn listed(endpoints: impl IntoIterator<Item = u32>) -> Vec<Listed> {
    let one = |endpoint| Listed { endpoint, incarnation: 1, weight: 100, capacity_milli: 0, priority: 0, ready: true };
    endpoints.into_iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_stays_with_who_stays_and_a_new_start_begins_anew() {
        let mut known: Known<u32> = Known::default();
        known.list(&listed([7, 3, 5]));
        for endpoint in [3, 5, 7] {
            *known.find(endpoint).unwrap() = endpoint * 10;
        }
        let mut list = listed([7, 5, 9]);
        list[1].incarnation = 2;
        known.list(&list);
        assert_eq!([3, 5, 7, 9].map(|endpoint| known.find(endpoint).copied()), [None, Some(0), Some(70), Some(0)]);
        assert_eq!((known.usable(), known.endpoint(1)), (3, 7));
    }

    #[test]
    fn who_has_no_weight_no_connection_or_a_worse_tier_is_not_drawn() {
        let mut known: Known<u32> = Known::default();
        let mut list = listed(0..5);
        list[0].weight = 0;
        list[1].ready = false;
        list[2].priority = 1;
        known.list(&list);
        let mut rng = Rng::from_seed(1);
        for _ in 0..50 {
            let (first, second) = known.draw_two(&mut rng, &[]).unwrap();
            let mut two = [known.endpoint(first), known.endpoint(second.unwrap())];
            two.sort_unstable();
            assert_eq!(two, [3, 4]);
            assert_eq!(known.draw(&mut rng, &[3]).map(|at| known.endpoint(at)), Some(4));
            assert_eq!(known.draw_two(&mut rng, &[3]).map(|two| two.1), Some(None));
            assert!(known.draw(&mut rng, &[3, 4]).is_some());
        }
        assert_eq!([2, 3, 4].map(|endpoint| known.may_use(endpoint)), [false, true, true]);
        known.list(&[]);
        assert_eq!(known.draw(&mut rng, &[]), None);
    }
}
