//! `lookaside status`: the whole balancer on one screen, with what is wrong and the command that says why.

use lookaside_proto::v1::{self, ServiceSummary};
use serde::Serialize;

use crate::Global;
use crate::admin::Admin;
use crate::duration::age;
use crate::exit::Failure;
use crate::output::{self, Envelope, Format};
use crate::services::Service;

/// Show how the balancer, its sources and its services are
#[derive(clap::Args)]
#[command(after_help = "Example:\n  lookaside status -a lb-0:7401,lb-1:7401")]
pub(crate) struct Args {}

/// What is told of the balancer itself, beside the services.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Overview {
    version: String,
    epoch: String,
    uptime_ms: u64,
    draining: bool,
    client_address: String,
    metrics_address: String,
    pick_streams: u32,
    pick_streams_synced: u32,
    report_streams: u32,
    sources: Vec<Source>,
    data: Vec<DataFile>,
    certificates: Vec<Certificate>,
    #[serde(skip_serializing_if = "Option::is_none")]
    config: Option<Configuration>,
}

/// The configuration file, where there is one.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Configuration {
    file: String,
    applied_ms_ago: u64,
    refused: bool,
    refused_ms_ago: u64,
    problems: Vec<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Source {
    name: String,
    stale: bool,
    detail: String,
    last_answer_ms_ago: u64,
    endpoints: u32,
    answered: bool,
}

/// What a listener shows.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Certificate {
    listener: String,
    names: Vec<String>,
    not_before_unix_ms: u64,
    not_after_unix_ms: u64,
    ending: bool,
    refused: String,
}

/// A file of the data directory.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DataFile {
    name: String,
    path: String,
    saved: bool,
    detail: String,
    saved_ms_ago: u64,
    bytes: u64,
    refused: String,
}

/// Prints the overview; exit 0 whatever it says, as long as the balancer answers.
pub(crate) async fn run(global: &Global, Args {}: Args) -> Result<(), Failure> {
    let Admin { status, .. } = Admin::connect(global).await?;
    match global.output {
        Format::Table => output::text(&screen(&status)),
        Format::Json => {
            let balancer = status.balancer.clone();
            let (overview, services) = split(status);
            output::json(&Envelope::with("Status", &balancer, overview, services))
        }
    }
}

fn split(status: v1::Status) -> (Overview, Vec<Service>) {
    let sources = status
        .sources
        .into_iter()
        .map(|s| Source {
            name: s.name,
            stale: s.stale,
            detail: s.detail,
            last_answer_ms_ago: s.last_answer_ms_ago,
            endpoints: s.endpoints,
            answered: s.answered,
        })
        .collect();
    let data = status
        .data
        .into_iter()
        .map(|file| DataFile {
            name: file.name,
            path: file.path,
            saved: file.saved,
            detail: file.detail,
            saved_ms_ago: file.saved_ms_ago,
            bytes: file.bytes,
            refused: file.refused,
        })
        .collect();
    let certificates = status.certificates.into_iter().map(|certificate| Certificate {
        listener: certificate.listener,
        names: certificate.names,
        not_before_unix_ms: certificate.not_before_unix_ms,
        not_after_unix_ms: certificate.not_after_unix_ms,
        ending: certificate.ending,
        refused: certificate.refused,
    });
    let overview = Overview {
        version: status.version,
        epoch: format!("{:016x}", status.epoch),
        uptime_ms: status.uptime_ms,
        draining: status.draining,
        client_address: status.client_address,
        metrics_address: status.metrics_address,
        pick_streams: status.pick_streams,
        pick_streams_synced: status.pick_streams_synced,
        report_streams: status.report_streams,
        sources,
        data,
        certificates: certificates.collect(),
        config: status.config.map(|config| Configuration {
            file: config.file,
            applied_ms_ago: config.applied_ms_ago,
            refused: config.refused,
            refused_ms_ago: config.refused_ms_ago,
            problems: config.problems,
        }),
    };
    (overview, status.services.into_iter().map(Service::new).collect())
}

fn screen(status: &v1::Status) -> String {
    let mut lines = vec![headline(status), totals(status)];
    if let Some(config) = &status.config {
        lines.push(configuration(config));
        lines.extend(config.problems.iter().map(|problem| format!("!   {problem}")));
    }
    for source in &status.sources {
        let mark = if source.stale { "! " } else { "  " };
        let detail = if source.detail.is_empty() { String::new() } else { format!(": {}", source.detail) };
        let (answer, stale) = if source.answered {
            (format!("last answer {} ago", age(source.last_answer_ms_ago)), "   STALE, its last answer still holds")
        } else {
            ("no answer yet".to_owned(), "   STALE")
        };
        lines.push(format!(
            "{mark}source {}   {} endpoints   {answer}{}{detail}",
            source.name,
            source.endpoints,
            if source.stale { stale } else { "" },
        ));
    }
    let now = output::now_unix_ms();
    lines.extend(status.certificates.iter().map(|certificate| certificate_line(certificate, now)));
    for file in &status.data {
        if !file.refused.is_empty() {
            lines.push(format!("! {} of the last start not used: {}", file.name, file.refused));
        }
        if !file.saved {
            lines.push(format!("! {} not kept on disk: {}: {}", file.name, file.path, file.detail));
        }
    }
    let troubled: Vec<&ServiceSummary> = status.services.iter().filter(|s| s.status != "OK").collect();
    if !troubled.is_empty() {
        let rows = troubled
            .iter()
            .map(|s| {
                [
                    // Settling passes by itself, and is no trouble.
                    if s.status == "SETTLING" { " " } else { "!" }.to_owned(),
                    s.name.clone(),
                    s.status.clone(),
                    format!("{}/{}", s.eligible, s.endpoints),
                    s.note.clone(),
                    next(s),
                ]
            })
            .collect();
        lines.push(output::table(["", "SERVICE", "STATUS", "ELIGIBLE", "NOTE", "NEXT"], rows));
    }
    // Every line may carry words of a peer.
    lines.iter().flat_map(|line| line.lines()).map(output::clean).collect::<Vec<_>>().join("\n")
}

fn configuration(config: &v1::ConfigStatus) -> String {
    if config.refused {
        let (refused, applied) = (age(config.refused_ms_ago), age(config.applied_ms_ago));
        return format!("! config {}   REFUSED {refused} ago, the last good one of {applied} ago holds", config.file);
    }
    format!("  config {}   applied {} ago", config.file, age(config.applied_ms_ago))
}

/// Of each listener that speaks TLS, how long that lasts.
fn certificate_line(certificate: &v1::Certificate, now_unix_ms: u64) -> String {
    let mark = if certificate.ending || !certificate.refused.is_empty() { "! " } else { "  " };
    let left = certificate.not_after_unix_ms.checked_sub(now_unix_ms).filter(|left| *left > 0);
    let left = match left {
        Some(left) => format!("expires in {}", age(left)),
        None => "EXPIRED".to_owned(),
    };
    let names = if certificate.names.is_empty() { "nobody".to_owned() } else { certificate.names.join(", ") };
    let refused = if certificate.refused.is_empty() {
        String::new()
    } else {
        format!("   newer files not used: {}", certificate.refused)
    };
    format!("{mark}certificate {}   for {names}   {left}{refused}", certificate.listener)
}

fn headline(status: &v1::Status) -> String {
    format!(
        "lookaside {} {}   up {}   clients at {}{}",
        status.balancer,
        status.version,
        age(status.uptime_ms),
        status.client_address,
        if status.draining { "   DRAINING" } else { "" },
    )
}

fn totals(status: &v1::Status) -> String {
    let mut kinds: Vec<(&str, usize)> = Vec::new();
    for service in &status.services {
        match kinds.iter_mut().find(|(kind, _)| *kind == service.status) {
            Some((_, count)) => *count += 1,
            None => kinds.push((&service.status, 1)),
        }
    }
    let services = match kinds.as_slice() {
        [] => "none yet".to_owned(),
        kinds => kinds.iter().map(|(kind, count)| format!("{count} {kind}")).collect::<Vec<_>>().join("  "),
    };
    let eligible: u32 = status.services.iter().map(|s| s.eligible).sum();
    let known: u32 = status.services.iter().map(|s| s.endpoints).sum();
    format!(
        "SERVICES {services}   ENDPOINTS {eligible} eligible of {known}   PICK STREAMS {} ({} synced)   REPORT STREAMS {}",
        status.pick_streams, status.pick_streams_synced, status.report_streams,
    )
}

fn next(service: &ServiceSummary) -> String {
    match service.status.as_str() {
        // It passes by itself.
        "SETTLING" => String::new(),
        "DEGRADED" => format!("lookaside endpoints {} --excluded", service.name),
        _ => format!("lookaside explain {}", service.name),
    }
}

#[cfg(test)]
mod tests {
    use lookaside_proto::v1::{ListMode, SourceStatus};

    use super::*;

    #[test]
    fn one_screen_says_what_is_wrong_and_what_to_do() {
        let service = |name: &str, status: &str, mode: ListMode, eligible, note: &str| ServiceSummary {
            name: name.to_owned(),
            status: status.to_owned(),
            mode: mode.into(),
            eligible,
            endpoints: 8,
            note: note.to_owned(),
            ..ServiceSummary::default()
        };
        let status = v1::Status {
            balancer: "lb-0".to_owned(),
            version: "0.1.0".to_owned(),
            uptime_ms: 273_600_000,
            client_address: "127.0.0.1:7400".to_owned(),
            services: vec![
                service("payments", "PANIC", ListMode::Panic, 2, "2 of 8 usable"),
                service("search", "DEGRADED", ListMode::Normal, 7, ""),
                service("mail", "SETTLING", ListMode::Normal, 8, ""),
                service("greeter", "OK", ListMode::Normal, 8, ""),
            ],
            pick_streams: 12,
            pick_streams_synced: 11,
            report_streams: 24,
            sources: vec![SourceStatus {
                name: "file".to_owned(),
                stale: true,
                detail: "line 3: unknown key".to_owned(),
                last_answer_ms_ago: 95_000,
                endpoints: 8,
                answered: true,
            }],
            data: vec![v1::DataFile {
                name: "snapshot".to_owned(),
                path: "/d/snapshot.jsonl".to_owned(),
                detail: "No space left on device".to_owned(),
                refused: "/d/snapshot.jsonl: it is damaged".to_owned(),
                ..v1::DataFile::default()
            }],
            config: Some(v1::ConfigStatus {
                file: "lb.yaml".to_owned(),
                applied_ms_ago: 95_000,
                refused: true,
                refused_ms_ago: 2_000,
                problems: vec!["lb.yaml:3:5: LKS0103: unknown key `leese`".to_owned()],
            }),
            ..v1::Status::default()
        };
        assert_eq!(
            screen(&status),
            "lookaside lb-0 0.1.0   up 3d4h   clients at 127.0.0.1:7400\n\
             SERVICES 1 PANIC  1 DEGRADED  1 SETTLING  1 OK   ENDPOINTS 25 eligible of 32   PICK STREAMS 12 (11 synced)   REPORT STREAMS 24\n\
             ! config lb.yaml   REFUSED 2.0s ago, the last good one of 95s ago holds\n\
             !   lb.yaml:3:5: LKS0103: unknown key `leese`\n\
             ! source file   8 endpoints   last answer 95s ago   STALE, its last answer still holds: line 3: unknown key\n\
             ! snapshot of the last start not used: /d/snapshot.jsonl: it is damaged\n\
             ! snapshot not kept on disk: /d/snapshot.jsonl: No space left on device\n   \
                SERVICE   STATUS    ELIGIBLE  NOTE           NEXT\n\
             !  payments  PANIC     2/8       2 of 8 usable  lookaside explain payments\n\
             !  search    DEGRADED  7/8       -              lookaside endpoints search --excluded\n   \
                mail      SETTLING  8/8       -              -"
        );
    }
}
