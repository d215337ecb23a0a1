//! Whether a scenario can be run. Each refusal names the key and what is wrong with it.

use lookaside_core::model::Locality;

use super::{Error, Fault, FaultKind, Scenario, Size, Which};
use crate::digest::ALL;

/// Endpoints and clients that a run has memory for.
const COUNT_MAX: u32 = 100_000;
/// The longest time anything may take: a day.
const TIME_MS_MAX: u64 = 24 * 3_600_000;

impl Scenario {
    pub(super) fn check(&self) -> Result<(), Error> {
        between("endpoints", f64::from(self.endpoints_count()), 1.0, f64::from(COUNT_MAX))?;
        between("clients.count", f64::from(self.clients.count), 1.0, f64::from(COUNT_MAX))?;
        between("clients.zipf", self.clients.zipf, 0.0, 3.0)?;
        between("load", self.load, 0.001, 10.0)?;
        between("service_time_us_mean", self.service_time_us_mean as f64, 10.0, 1e9)?;
        between("network_us", self.network_us as f64, 0.0, 1e9)?;
        between("probe_timeout_us", self.probe_timeout_us as f64, 1.0, 1e9)?;
        for (at, group) in self.endpoints.iter().enumerate() {
            between(&format!("endpoints[{at}].cores"), f64::from(group.cores), 1.0, 100_000.0)?;
            between(&format!("endpoints[{at}].speed"), group.speed, 0.001, 1_000.0)?;
            zone(&format!("endpoints[{at}].zone"), &group.zone)?;
        }
        let balancer = &self.balancer;
        let delays = [
            ("balancer.report_delay_us", balancer.report_delay_us),
            ("balancer.push_delay_us", balancer.push_delay_us),
            ("balancer.jitter_us", balancer.jitter_us),
        ];
        delays.iter().try_for_each(|(key, us)| between(key, *us as f64, 0.0, 1e9))?;
        between("balancer.report_loss_permille", f64::from(balancer.report_loss_permille), 0.0, 1_000.0)?;
        between("retries.attempts", f64::from(self.retries.attempts), 1.0, 10.0)?;
        let times = [
            ("warm_up_ms", self.warm_up_ms),
            ("measured_ms", self.measured_ms),
            ("share_window_ms", self.share_window_ms),
            ("balancer.slow_start_ms", balancer.slow_start_ms),
            ("retries.timeout_ms", self.retries.timeout_ms),
        ];
        times.iter().try_for_each(|(key, ms)| between(key, *ms as f64, 0.0, TIME_MS_MAX as f64))?;
        between("measured_ms", self.measured_ms as f64, 1_000.0, TIME_MS_MAX as f64)?;
        between("share_window_ms", self.share_window_ms as f64, 1_000.0, TIME_MS_MAX as f64)?;
        self.check_size()?;
        self.check_times()?;
        self.check_faults()
    }

    fn check_size(&self) -> Result<(), Error> {
        match self.size {
            Size::Exponential | Size::Fixed | Size::TruncatedNormal => Ok(()),
            Size::Lognormal { cv } => between("size.lognormal.cv", cv, 0.01, 100.0),
            Size::Bimodal { long_permille, factor } => {
                between("size.bimodal.long_permille", f64::from(long_permille), 0.0, 1_000.0)?;
                between("size.bimodal.factor", factor, 1.0, 1e6)
            }
        }
    }

    fn check_times(&self) -> Result<(), Error> {
        let mut before = 0;
        for (at, step) in self.load_steps.iter().enumerate() {
            let key = format!("load_steps[{at}]");
            between(&format!("{key}.factor"), step.factor, 0.0, 100.0)?;
            between(&format!("{key}.at_ms"), step.at_ms as f64, before as f64, self.measured_ms as f64 - 1.0)?;
            before = step.at_ms;
        }
        self.check_windows()?;
        for (at, share) in self.clients.zones.iter().enumerate() {
            zone(&format!("clients.zones[{at}].zone"), &share.zone)?;
        }
        let percents: u32 = self.clients.zones.iter().map(|zone| zone.percent.min(1_000)).sum();
        if !self.clients.zones.is_empty() && percents != 100 {
            return Err(value("clients.zones", format!("the percents come to {percents}, not to 100")));
        }
        Ok(())
    }

    /// Results are found by the names of windows, so each has one of its own.
    fn check_windows(&self) -> Result<(), Error> {
        for (at, window) in self.windows.iter().enumerate() {
            let (key, name, measured_ms) = (format!("windows[{at}]"), &window.name, self.measured_ms);
            if name == ALL {
                return Err(value(
                    &format!("{key}.name"),
                    format!("`{ALL}` is what the whole measured time is called"),
                ));
            }
            if let Some(twin) = self.windows.iter().take(at).position(|other| other.name == *name) {
                return Err(value(&format!("{key}.name"), format!("windows[{twin}] is called `{name}` already")));
            }
            if window.until_ms <= window.from_ms || window.until_ms > measured_ms {
                let reason = format!(
                    "must be after from_ms, which is {}, and at most measured_ms, which is {measured_ms}",
                    window.from_ms
                );
                return Err(value(&format!("{key}.until_ms"), reason));
            }
        }
        Ok(())
    }

    fn check_faults(&self) -> Result<(), Error> {
        for (at, fault) in self.faults.iter().enumerate() {
            let key = format!("faults[{at}]");
            self.check_moment(&key, fault)?;
            let within = |part: &str, given: f64, least: f64, most: f64| {
                between(&format!("{key}.kind.{part}"), given, least, most)
            };
            let period = |part: &str, ms: u64| within(part, ms as f64, 1.0, TIME_MS_MAX as f64);
            match fault.kind {
                FaultKind::Pauses { every_ms, pause_ms } => {
                    period("pauses.pause_ms", pause_ms)?;
                    within("pauses.every_ms", every_ms as f64, pause_ms as f64 + 1.0, TIME_MS_MAX as f64)?;
                }
                FaultKind::Antagonist { on_ms, off_ms, speed_factor } => {
                    period("antagonist.on_ms", on_ms)?;
                    period("antagonist.off_ms", off_ms)?;
                    within("antagonist.speed_factor", speed_factor, 0.001, 1_000.0)?;
                }
                FaultKind::Cold { factor } => within("cold.factor", factor, 0.001, 1_000.0)?,
                FaultKind::Partial { permille } => within("partial.permille", f64::from(permille), 0.0, 1_000.0)?,
                FaultKind::BalancerDown => continue,
                FaultKind::FastFail { after_us } => within("fast_fail.after_us", after_us as f64, 0.0, 1e9)?,
                FaultKind::SlowFail { after_us } => within("slow_fail.after_us", after_us as f64, 0.0, 1e9)?,
                FaultKind::Pause | FaultKind::Lie | FaultKind::Join | FaultKind::Leave | FaultKind::Crash => {}
            }
            self.check_which(&format!("{key}.endpoints"), &fault.endpoints)?;
        }
        Ok(())
    }

    /// A fault outside of the run would leave it as if it were not written.
    fn check_moment(&self, key: &str, fault: &Fault) -> Result<(), Error> {
        between(&format!("{key}.at_ms"), fault.at_ms as f64, -(TIME_MS_MAX as f64), TIME_MS_MAX as f64)?;
        between(&format!("{key}.for_ms"), fault.for_ms as f64, 0.0, TIME_MS_MAX as f64)?;
        let (at_ms, measured_ms, warm_up_ms) = (fault.at_ms, self.measured_ms, self.warm_up_ms);
        if at_ms >= measured_ms as i64 {
            let reason = format!("{at_ms} is not before the end of the run, which is at {measured_ms} (measured_ms)");
            return Err(value(&format!("{key}.at_ms"), reason));
        }
        if fault.for_ms > 0 && at_ms + (fault.for_ms as i64) <= -(warm_up_ms as i64) {
            let reason = format!("it is over before the run begins, at -{warm_up_ms} (warm_up_ms)");
            return Err(value(&format!("{key}.for_ms"), reason));
        }
        Ok(())
    }

    fn check_which(&self, key: &str, which: &Which) -> Result<(), Error> {
        let Some(group) = self.group(which) else {
            let names: Vec<&str> = self.endpoints.iter().map(|group| group.name.as_str()).collect();
            let reason = format!("no group is called `{}`; there are {}", which.group, names.join(", "));
            return Err(value(&format!("{key}.group"), reason));
        };
        let named = self.endpoints.iter().filter(|group| group.name == which.group).count();
        if named > 1 {
            let reason = format!("{named} groups are called `{}`; give each a name", which.group);
            return Err(value(&format!("{key}.group"), reason));
        }
        let (name, all) = (&group.name, group.count);
        if which.first >= all {
            let reason = format!("there are no such endpoints: group `{name}` has {all}, the first of them is 0");
            return Err(value(&format!("{key}.first"), reason));
        }
        if which.count > all - which.first {
            let left = all - which.first;
            let reason = format!(
                "{} from {} on are more than the {left} left of {all} in group `{name}`",
                which.count, which.first
            );
            return Err(value(&format!("{key}.count"), reason));
        }
        Ok(())
    }
}

fn value(key: &str, reason: String) -> Error {
    Error::Value { key: key.to_owned(), reason }
}

/// Where something runs; nowhere known if it is empty.
fn zone(key: &str, text: &str) -> Result<(), Error> {
    match Locality::parse(text) {
        Ok(_) => Ok(()),
        Err(error) => Err(value(key, format!("`{text}` is not region/zone: {error}"))),
    }
}

/// NaN is not between anything.
fn between(key: &str, given: f64, least: f64, most: f64) -> Result<(), Error> {
    if (least..=most).contains(&given) {
        return Ok(());
    }
    Err(value(key, format!("{given} is not a number from {least} to {most}")))
}
