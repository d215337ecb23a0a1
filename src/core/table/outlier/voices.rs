//! What clients told of their calls on one endpoint in the last ten seconds, and how far they agree. Whose word it is
//! counts as much as what it says: a decision holds whichever single voice one leaves out, and none counts for more than all
//! others together, so that none can take it alone, or stand against many, however many calls it claims.

use std::time::Duration;

use crate::{
    event::Client,
    hash,
    model::{Peer, Timestamp},
};

/// Evidence older than this does not count. Clients tell every second, so it is several of their reports.
pub(super) const WINDOW: Duration = Duration::from_secs(10);
pub(super) const PERIODS: u64 = 20;
const PERIOD_US: u64 = WINDOW.as_micros() as u64 / PERIODS;

/// Voices of one endpoint that are told apart. A further one shares a row, by its hash: nothing of what it says is lost, only
/// that it counts as two voices, which makes a quorum harder to reach and never easier.
const ROWS_MAX: usize = 16;

/// Voices that agree, however few calls they tell of.
const QUORUM: usize = 3;

/// Where fewer than these call an endpoint, all of them do for a quorum, after this many calls, divided among them: ten of two.
/// Clients put an endpoint aside, and say so, after five failures in a row.
const ALONE_CALLS_MIN: usize = 20;

/// One or two voices are believed when others had so long to speak. Clients tell every second; and what the first five failures
/// were told as, upon which clients leave the endpoint alone but for a call after 1, 3, 7 and 15 s, still counts then.
const LISTENED_MIN: Duration = Duration::from_secs(5);

/// Quantile of the normal distribution: 97.5 % certain of what the whole window tells.
const CERTAINTY: f64 = 1.96;

/// The newest part of the window is looked at by itself as well, in these many periods: an endpoint that was called a thousand
/// times before it began to fail would otherwise have to fail for seconds. That is asking more than once, so it takes 99.5 %
/// and this many failures.
const NEWEST_PERIODS: [u64; 4] = [1, 2, 4, 10];
const NEWEST_CERTAINTY: f64 = 2.58;
const NEWEST_FAILURES_MIN: u32 = 5;

/// Calls that ended.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) ok: u32,
    pub(super) failed: u32,
}

impl Counts {
    /// Whether there were no calls.
    pub(super) fn is_none(self) -> bool {
        self.all() == 0
    }

    /// How many.
    pub(super) fn all(self) -> u32 {
        self.ok.saturating_add(self.failed)
    }

    fn and(self, more: Self) -> Self {
        Self { ok: self.ok.saturating_add(more.ok), failed: self.failed.saturating_add(more.failed) }
    }

    /// The share that failed, permille; 0 where nobody called.
    pub(super) fn failed_permille(self) -> u32 {
        (u64::from(self.failed) * 1000 / u64::from(self.all().max(1))) as u32
    }

    /// So many of them at most, in the same proportion.
    fn cut(self, most: u32) -> Self {
        let all = self.all();
        if all <= most {
            return self;
        }
        let failed = ((u64::from(self.failed) * u64::from(most) + u64::from(all) / 2) / u64::from(all)) as u32;
        Self { ok: most - failed.min(most), failed: failed.min(most) }
    }

    /// The least share of failures that these calls are evidence of, permille: the lower bound of Wilson's interval (1927),
    /// which is meaningful of few calls as well. Of 3 calls that all failed it is 438, of 2 it is 342, of 1 it is 206.
    fn failed_permille_least(self, certainty: f64) -> u32 {
        let calls = f64::from(self.all());
        if calls == 0.0 {
            return 0;
        }
        let (share, square) = (f64::from(self.failed) / calls, certainty * certainty);
        let middle = share + square / (2.0 * calls);
        let width = certainty * (share * (1.0 - share) / calls + square / (4.0 * calls * calls)).sqrt();
        ((middle - width) / (1.0 + square / calls) * 1000.0) as u32
    }
}

/// Counts of the last [`WINDOW`], by period.
#[derive(Debug, Default, Clone)]
struct Recent {
    periods: [Counts; PERIODS as usize],
    newest: u64,
}

impl Recent {
    fn add(&mut self, counts: Counts, now: Timestamp) {
        let period = now.0 / PERIOD_US;
        for passed in (self.newest + 1..=period).rev().take(PERIODS as usize) {
            self.periods[(passed % PERIODS) as usize] = Counts::default();
        }
        self.newest = self.newest.max(period);
        let held = &mut self.periods[(self.newest % PERIODS) as usize];
        *held = held.and(counts);
    }

    /// What is held of a period.
    fn of(&self, period: u64) -> Counts {
        let is_held = period <= self.newest && self.newest - period < PERIODS;
        if is_held { self.periods[(period % PERIODS) as usize] } else { Counts::default() }
    }

    fn sum(&self, now: Timestamp, periods: u64) -> Counts {
        let periods = (0..periods).filter_map(|age| (now.0 / PERIOD_US).checked_sub(age));
        periods.fold(Counts::default(), |sum, period| sum.and(self.of(period)))
    }

    /// What was told last, unless it is too old to count.
    fn last(&self, now: Timestamp) -> Counts {
        if self.is_over(now) { Counts::default() } else { self.of(self.newest) }
    }

    fn and(&self, more: &Self) -> Self {
        let mut both = Self { newest: self.newest.max(more.newest), ..Self::default() };
        for period in (0..PERIODS).filter_map(|age| both.newest.checked_sub(age)) {
            both.periods[(period % PERIODS) as usize] = self.of(period).and(more.of(period));
        }
        both
    }

    fn is_over(&self, now: Timestamp) -> bool {
        (now.0 / PERIOD_US).saturating_sub(self.newest) >= PERIODS
    }
}

/// Where those who told something connect from.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum From {
    #[default]
    Nowhere,
    One(Peer),
    Many,
}

#[derive(Debug, Clone)]
struct Row {
    voice: u64,
    /// Others, for whom there was no row, speak here too.
    shared: bool,
    told: Recent,
}

/// Everything that was told of one endpoint.
///
/// A voice is a machine: whoever is on one can take any number of names and connections. Where all who call an endpoint are
/// on one machine, or behind one address, there is nothing better than what they call themselves.
#[derive(Debug, Default, Clone)]
pub(super) struct Voices {
    rows: Vec<Row>,
    from: From,
    /// When the first of those spoke that have not been silent all together since.
    since: Option<Timestamp>,
}

/// What voices agree on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Agreement {
    /// The least share of failures that is evident without any single one of them, permille.
    pub(super) failed_permille_least: u32,
    /// Who saw calls fail, and how many there are.
    pub(super) accusers: usize,
    pub(super) voices: usize,
    /// What they told, together, and of how many of the newest periods.
    pub(super) counts: Counts,
    pub(super) periods: u64,
}

impl Voices {
    /// Takes in what a client told.
    pub(super) fn add(&mut self, client: &Client, counts: Counts, now: Timestamp) {
        if self.rows.iter().all(|row| row.told.is_over(now)) {
            *self = Self { since: Some(now), ..Self::default() };
        }
        let since = self.since;
        match self.from {
            From::Nowhere => self.from = From::One(client.peer),
            From::One(peer) if peer != client.peer => {
                // What was told by many names on one machine is one voice from now on.
                let told = self.rows.iter().fold(Recent::default(), |told, row| told.and(&row.told));
                let voice = hash::number(peer.0);
                *self = Self { rows: vec![Row { voice, shared: false, told }], from: From::Many, since };
            }
            From::One(_) | From::Many => {}
        }
        let voice = match self.from {
            From::Many => hash::number(client.peer.0),
            From::Nowhere | From::One(_) => hash::text(0, client.id.as_str()),
        };
        let at = self.row(voice, now);
        if let Some(row) = self.rows.get_mut(at) {
            row.told.add(counts, now);
        }
    }

    /// The row of a voice: its own if possible.
    fn row(&mut self, voice: u64, now: Timestamp) -> usize {
        if let Some(own) = self.rows.iter().position(|row| row.voice == voice) {
            return own;
        }
        let new = Row { voice, shared: false, told: Recent::default() };
        if self.rows.len() < ROWS_MAX {
            self.rows.push(new);
            return self.rows.len() - 1;
        }
        if let Some(free) = self.rows.iter().position(|row| row.told.is_over(now)) {
            self.rows[free] = new;
            return free;
        }
        let shared = Self::shared_row(voice);
        self.rows[shared].shared = true;
        shared
    }

    /// Where a voice speaks when there is no row for it.
    fn shared_row(voice: u64) -> usize {
        (voice % ROWS_MAX as u64) as usize
    }

    /// How many told something lately, and of how many calls.
    pub(super) fn lately(&self, now: Timestamp) -> (usize, u32) {
        let claimed = self.told_of(|told| told.sum(now, PERIODS));
        (claimed.len(), sum(&claimed).all())
    }

    /// The largest share of failures in any part of the window that is looked at, permille, whosever words they are: what voices
    /// agree on is never more.
    pub(super) fn failed_permille_most(&self, now: Timestamp) -> u32 {
        let parts = NEWEST_PERIODS.into_iter().chain([PERIODS]);
        parts.map(|periods| sum(&self.told(now, periods)).failed_permille()).max().unwrap_or(0)
    }

    /// What was told lately, without the voice whose absence makes it look best.
    pub(super) fn benign(&self, now: Timestamp) -> Counts {
        self.benign_of(&self.told(now, PERIODS))
    }

    /// The share of failures, permille, as those tell it who are not left out: of the newest periods, or that which more than half
    /// of them told last, if it is more. Clients that put an endpoint aside when it begins to fail tell little of it from then on,
    /// and what they told before is old. `None` where nothing is known of these periods: silence is no good word.
    pub(super) fn failed_permille_usual(&self, left_out: Option<u64>, now: Timestamp, periods: u64) -> Option<u32> {
        let counts = |told: Vec<(usize, Counts)>| {
            told.into_iter()
                .filter(|(at, _)| left_out.is_none_or(|voice| !self.speaks_in(voice, *at)))
                .map(|(_, counts)| counts)
        };
        let mut last: Vec<u32> = counts(self.told_of(|told| told.last(now))).map(Counts::failed_permille).collect();
        last.sort_unstable();
        let of_most = last.get(last.len().saturating_sub(1) / 2).copied().filter(|permille| *permille > 0);
        let newest = counts(self.told(now, periods)).reduce(Counts::and).map(Counts::failed_permille);
        of_most.max(newest)
    }

    /// Voices that told of failures in the newest periods, and by how much each alone raises the share of them, permille. Those
    /// that share a row go by its place, which is the same at every endpoint.
    pub(super) fn accusers(&self, now: Timestamp, periods: u64) -> impl Iterator<Item = (u64, u32)> {
        let told = self.told(now, periods);
        let all = told.iter().fold(0, |all: u32, (_, counts)| all.saturating_add(counts.all()));
        let failed = told.into_iter().filter(|(_, counts)| counts.failed > 0);
        failed.flat_map(move |(at, Counts { failed, .. })| {
            let row = &self.rows[at];
            let permille = (u64::from(failed) * 1000 / u64::from(all)) as u32;
            std::iter::once(row.voice).chain(row.shared.then_some(at as u64)).map(move |voice| (voice, permille))
        })
    }

    /// Whether what a row holds may be of a voice. Before it had a row of its own it may have spoken in a shared one; and
    /// elsewhere a machine is a voice, whatever its clients call themselves where nobody else calls.
    fn speaks_in(&self, voice: u64, at: usize) -> bool {
        self.rows[at].voice == voice
            || (self.rows[at].shared && at == Self::shared_row(voice))
            || matches!(self.from, From::One(peer) if hash::number(peer.0) == voice)
    }

    fn benign_of(&self, told: &[(usize, Counts)]) -> Counts {
        match told {
            [] => Counts::default(),
            [(_, only)] => *only,
            _ => self.without_each(told).min_by_key(|counts| counts.failed_permille()).unwrap_or_default(),
        }
    }

    /// What is evident of the endpoint, if enough voices have seen its calls fail, and no fewer than these.
    pub(super) fn agree(&self, voices_min: usize, now: Timestamp) -> Option<Agreement> {
        let newest = NEWEST_PERIODS.iter().filter_map(|periods| self.agree_within(now, *periods, NEWEST_CERTAINTY));
        // Who is silent for a second may still be there: only a whole window tells that there are no others.
        let newest = newest.filter(|agreed| agreed.accusers >= QUORUM && agreed.counts.failed >= NEWEST_FAILURES_MIN);
        let is_listened = self.since.is_some_and(|since| now.since(since) >= LISTENED_MIN);
        let whole = self.agree_within(now, PERIODS, CERTAINTY);
        let whole = whole.filter(|agreed| agreed.voices >= QUORUM || (is_listened && agreed.voices >= voices_min));
        whole.into_iter().chain(newest).max_by_key(|agreed| agreed.failed_permille_least)
    }

    fn agree_within(&self, now: Timestamp, periods: u64, certainty: f64) -> Option<Agreement> {
        let claimed = self.told_of(|told| told.sum(now, periods));
        let (counts, told) = (sum(&claimed), quiet(claimed.clone()));
        let accusers = claimed.iter().filter(|(_, counts)| counts.failed > 0).count();
        let is_quorum = match told.len() {
            QUORUM.. => accusers >= QUORUM,
            voices => accusers == voices && counts.all() as usize * voices >= ALONE_CALLS_MIN,
        };
        if !is_quorum {
            return None;
        }
        let failed_permille_least = match told.as_slice() {
            // Whoever shared it is silent now: it is not known whose word this is.
            [(at, _)] if self.rows[*at].shared => return None,
            [_] => counts.failed_permille_least(certainty),
            voices => {
                self.without_each(voices).map(|counts| counts.failed_permille_least(certainty)).min().unwrap_or(0)
            }
        };
        Some(Agreement { failed_permille_least, accusers, voices: told.len(), counts, periods })
    }

    /// Rows with something in them, and what that counts for, of so many periods.
    fn told(&self, now: Timestamp, periods: u64) -> Vec<(usize, Counts)> {
        quiet(self.told_of(|told| told.sum(now, periods)))
    }

    fn told_of(&self, part: impl Fn(&Recent) -> Counts) -> Vec<(usize, Counts)> {
        let counts = self.rows.iter().map(|row| part(&row.told)).enumerate();
        counts.filter(|(_, counts)| !counts.is_none()).collect()
    }

    /// The sum without each voice in turn.
    fn without_each<'a>(&'a self, told: &'a [(usize, Counts)]) -> impl Iterator<Item = Counts> + 'a {
        told.iter().map(move |(left_out, _)| {
            let voice = self.rows[*left_out].voice;
            let rest = told.iter().filter(|(at, _)| !self.speaks_in(voice, *at));
            rest.fold(Counts::default(), |sum, (_, counts)| sum.and(*counts))
        })
    }
}

fn sum(told: &[(usize, Counts)]) -> Counts {
    told.iter().fold(Counts::default(), |sum, (_, counts)| sum.and(*counts))
}

/// The same with none louder than the others together.
fn quiet(mut told: Vec<(usize, Counts)>) -> Vec<(usize, Counts)> {
    let all: u64 = told.iter().map(|(_, counts)| u64::from(counts.all())).sum();
    if told.len() > 1 {
        for (_, counts) in &mut told {
            let others = all - u64::from(counts.all());
            *counts = counts.cut(u32::try_from(others).unwrap_or(u32::MAX));
        }
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ClientId, Locality};

    fn client(name: &str, peer: u64) -> Client {
        Client { id: ClientId::parse(name).unwrap(), peer: Peer(peer), locality: Locality::unknown() }
    }

    fn counts(ok: u32, failed: u32) -> Counts {
        Counts { ok, failed }
    }

    fn seconds(s: u64) -> Timestamp {
        Timestamp(s * 1_000_000)
    }

    /// What clients agree on who told this, each from the same machine, of an endpoint that was called long before.
    fn agree(told: &[(&str, u32, u32)]) -> Option<u32> {
        agree_after(5, 0, told)
    }

    /// The same after so many voices before, of an endpoint that is called for so long.
    fn agree_after(listened_s: u64, voices_min: usize, told: &[(&str, u32, u32)]) -> Option<u32> {
        let (mut voices, now) = (Voices::default(), seconds(1 + listened_s));
        voices.add(&client(told[0].0, 1), counts(0, 0), seconds(1));
        told.iter().for_each(|(name, ok, failed)| voices.add(&client(name, 1), counts(*ok, *failed), now));
        voices.agree(voices_min, now).map(|agreed| agreed.failed_permille_least)
    }

    #[test]
    fn few_calls_are_little_evidence_and_many_are_more() {
        let least = |ok, failed| counts(ok, failed).failed_permille_least(CERTAINTY);
        assert_eq!((least(0, 0), least(0, 1), least(0, 2), least(0, 3)), (0, 206, 342, 438));
        assert_eq!((least(1, 0), least(5, 5), least(500, 500)), (0, 236, 469));
        assert_eq!(least(u32::MAX, u32::MAX), 999, "sums that do not fit are cut, and do no harm");
    }

    #[test]
    fn three_that_saw_one_failure_each_are_a_quorum_and_two_are_one_after_ten_calls() {
        assert_eq!(agree(&[("a", 0, 1), ("b", 0, 1), ("c", 0, 1)]), Some(342));
        assert_eq!(agree(&[("a", 0, 1), ("b", 0, 1)]), None, "a third may not have spoken yet");
        assert_eq!(agree(&[("a", 0, 5), ("b", 0, 5)]), Some(565), "only two call it");
        assert_eq!(agree(&[("a", 0, 9), ("b", 0, 9), ("c", 1, 0)]), None);
    }

    #[test]
    fn the_only_one_who_calls_is_believed_after_twenty_calls() {
        assert_eq!(agree(&[("a", 0, 19)]), None);
        assert!(agree(&[("a", 0, 20)]) > Some(800));
    }

    #[test]
    fn nobody_is_the_only_one_before_the_others_had_time_to_speak() {
        let (one, two) = ([("a", 0, 20)], [("a", 0, 5), ("b", 0, 5)]);
        for told in [&one[..], &two[..]] {
            assert_eq!(agree_after(4, 0, told), None);
            assert!(agree_after(5, 0, told).is_some());
        }
        assert!(agree_after(0, 3, &[("a", 0, 1), ("b", 0, 1), ("c", 0, 1)]).is_some(), "three need no time");
        // Two were needed before, and call it still, as far as is known.
        assert_eq!(agree_after(5, 2, &one), None);
        assert!(agree_after(5, 2, &two).is_some());
    }

    #[test]
    fn no_voice_stands_against_all_others_however_loud() {
        let told = [("liar", 1_000_000_000, 0), ("b", 0, 5), ("c", 0, 5), ("d", 0, 5)];
        assert!(agree(&told) > Some(200), "{:?}", agree(&told));
        // One that makes most of the calls is heard all the same.
        let told = [("b", 600, 400), ("c", 600, 400), ("d", 1, 0), ("e", 0, 1), ("f", 1, 0)];
        assert!(agree(&told) > Some(300), "{:?}", agree(&told));
        assert_eq!(counts(u32::MAX, 0).cut(8), counts(8, 0));
        assert_eq!((counts(30, 10).cut(4), counts(1, 1).cut(4)), (counts(3, 1), counts(1, 1)));
    }

    #[test]
    fn no_voice_decides_alone_however_loud() {
        let all = [("liar", 0, 1_000_000), ("b", 9, 1), ("c", 9, 1)];
        assert!(agree(&all) < Some(50), "what the others saw");
        let benign = {
            let mut voices = Voices::default();
            all.iter().for_each(|(name, ok, failed)| {
                voices.add(&client(name, 1), counts(*ok, *failed), seconds(1));
            });
            voices.benign(seconds(1))
        };
        assert_eq!(benign, counts(18, 2));
    }

    #[test]
    fn names_of_one_machine_are_one_voice_where_others_call_as_well() {
        let mut voices = Voices::default();
        voices.add(&client("honest", 2), counts(10, 1), seconds(1));
        for name in ["a", "b", "c", "d"] {
            voices.add(&client(name, 1), counts(0, 1_000), seconds(1));
        }
        let agreed = voices.agree(0, seconds(6)).unwrap();
        assert_eq!((agreed.voices, agreed.accusers, agreed.counts), (2, 2, counts(10, 4_001)));
        assert!(agreed.failed_permille_least < 50, "{agreed:?}");
    }

    #[test]
    fn a_voice_without_a_row_of_its_own_decides_nothing_alone_either() {
        let mut voices = Voices::default();
        for n in 0..20 {
            voices.add(&client(&format!("honest-{n}"), 1), counts(20, 1), seconds(1));
        }
        for _ in 0..9 {
            voices.add(&client("liar", 1), counts(0, 1_000_000), seconds(1));
        }
        assert_eq!(voices.rows.len(), ROWS_MAX);
        assert!(voices.agree(0, seconds(1)).unwrap().failed_permille_least < 50);
        // Rows are free again, the liar gets one of its own, and what it said before is still there.
        for n in 0..10 {
            voices.add(&client(&format!("honest-{n}"), 1), counts(20, 1), seconds(9));
        }
        voices.add(&client("liar", 1), counts(0, 1_000_000), seconds(11));
        assert!(voices.rows.iter().any(|row| row.voice == hash::text(0, "liar")));
        assert!(voices.agree(0, seconds(11)).unwrap().failed_permille_least < 50);
    }

    #[test]
    fn what_is_ten_seconds_old_is_forgotten() {
        let mut voices = Voices::default();
        for name in ["a", "b", "c"] {
            voices.add(&client(name, 1), counts(0, 5), seconds(1));
        }
        assert_eq!(voices.lately(seconds(7)), (3, 15));
        assert_eq!((voices.lately(seconds(11)), voices.agree(0, seconds(11))), ((0, 0), None));
        voices.add(&client("a", 1), counts(1, 0), seconds(12));
        assert_eq!((voices.lately(seconds(12)), voices.rows.len()), ((1, 1), 1));
        assert_eq!(voices.since, Some(seconds(12)), "where nobody called for long, nobody had a chance to speak");
    }
}
