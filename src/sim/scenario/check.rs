//! Whether a scenario can be run. Each refusal names the key and what is wrong with it.

use super::{Error, FaultKind, Scenario, Size};

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
        for group in &self.endpoints {
            between("endpoints.cores", f64::from(group.cores), 1.0, 100_000.0)?;
            between("endpoints.speed", group.speed, 0.001, 1_000.0)?;
        }
        let balancer = &self.balancer;
        let delays = [balancer.report_delay_us, balancer.push_delay_us, balancer.jitter_us];
        delays.iter().try_for_each(|us| between("balancer", *us as f64 / 1e3, 0.0, TIME_MS_MAX as f64))?;
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
        for step in &self.load_steps {
            between("load_steps.factor", step.factor, 0.0, 100.0)?;
            between("load_steps.at_ms", step.at_ms as f64, before as f64, TIME_MS_MAX as f64)?;
            before = step.at_ms;
        }
        for window in &self.windows {
            between("windows.until_ms", window.until_ms as f64, window.from_ms as f64 + 1.0, self.measured_ms as f64)?;
        }
        let percents: u32 = self.clients.zones.iter().map(|zone| zone.percent.min(1_000)).sum();
        if !self.clients.zones.is_empty() && percents != 100 {
            return Err(value("clients.zones", format!("the percents come to {percents}, not to 100")));
        }
        Ok(())
    }

    fn check_faults(&self) -> Result<(), Error> {
        for fault in &self.faults {
            let period = |ms: u64| between("faults.kind", ms as f64, 1.0, TIME_MS_MAX as f64);
            between("faults.at_ms", fault.at_ms as f64, -(TIME_MS_MAX as f64), TIME_MS_MAX as f64)?;
            between("faults.for_ms", fault.for_ms as f64, 0.0, TIME_MS_MAX as f64)?;
            match fault.kind {
                FaultKind::Pauses { every_ms, pause_ms } => {
                    period(pause_ms)?;
                    between("faults.kind.pauses.every_ms", every_ms as f64, pause_ms as f64 + 1.0, TIME_MS_MAX as f64)?;
                }
                FaultKind::Antagonist { on_ms, off_ms, speed_factor } => {
                    period(on_ms)?;
                    period(off_ms)?;
                    between("faults.kind.antagonist.speed_factor", speed_factor, 0.001, 1_000.0)?;
                }
                FaultKind::Cold { factor } => between("faults.kind.cold.factor", factor, 0.001, 1_000.0)?,
                FaultKind::Partial { permille } => {
                    between("faults.kind.partial.permille", f64::from(permille), 0.0, 1_000.0)?;
                }
                FaultKind::BalancerDown => continue,
                FaultKind::FastFail { after_us } | FaultKind::SlowFail { after_us } => {
                    between("faults.kind.after_us", after_us as f64, 0.0, 1e9)?;
                }
                FaultKind::Pause | FaultKind::Lie | FaultKind::Join | FaultKind::Leave | FaultKind::Crash => {}
            }
            if self.numbers(&fault.endpoints).is_empty() {
                let group = &fault.endpoints.group;
                return Err(value("faults.endpoints", format!("there are no such endpoints in group `{group}`")));
            }
        }
        Ok(())
    }
}

fn value(key: &str, reason: String) -> Error {
    Error::Value { key: key.to_owned(), reason }
}

/// NaN is not between anything.
fn between(key: &str, given: f64, least: f64, most: f64) -> Result<(), Error> {
    if (least..=most).contains(&given) {
        return Ok(());
    }
    Err(value(key, format!("{given} is not a number from {least} to {most}")))
}
