//! What `deploy/` says, against the binary that it is about: its commands run, its ports and times agree with each other
//! and with the balancer. Whether its files are good systemd, Kubernetes and Docker is for those tools to say: `.ci/deploy`.

#![allow(clippy::unwrap_used, reason = "what cannot be is a failed test")]

use std::{collections::BTreeMap, fs, os::unix::net::UnixDatagram, path::PathBuf, time::Duration};

use lookaside_tests::{Process, Signal, TemporaryFile, cli};
use serde_json::Value;

/// What the balancer takes to stop by default (`limits.drain_deadline`), and a margin for the process to go.
const DRAIN: Duration = Duration::from_secs(10 + 5);

const ANY_PORTS: [&str; 6] =
    ["--listen-client", "127.0.0.1:0", "--listen-admin", "127.0.0.1:0", "--listen-metrics", "127.0.0.1:0"];

fn path(below: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(below)
}

fn text(below: &str) -> String {
    fs::read_to_string(path(below)).unwrap()
}

/// The documents of the manifest, by kind.
fn manifest() -> BTreeMap<String, Value> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(&text("kubernetes/lookaside.yaml")).unwrap();
    documents.into_iter().map(|document| (document["kind"].as_str().unwrap().to_owned(), document)).collect()
}

/// The values of a key of a unit, in order.
fn unit(key: &str) -> Vec<String> {
    let text = text("systemd/lookaside.service");
    let values = text.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    values.map(str::to_owned).collect()
}

/// The words of an instruction of the Dockerfile that is written as a list.
fn instruction(name: &str) -> Vec<String> {
    let text = text("docker/Dockerfile");
    let line = text.lines().find(|line| line.starts_with(name)).unwrap();
    serde_json::from_str(&line[line.find('[').unwrap()..]).unwrap()
}

/// Where a balancer with these arguments serves, on ports of its own.
async fn serve(args: &[&str], environment: &[(&str, &str)]) -> (Process, Value) {
    let mut process = Process::start_with(&[args, &ANY_PORTS].concat(), environment);
    let ready = process.json_lines(1).await.remove(0);
    (process, ready)
}

async fn stop(mut process: Process) {
    process.signal(Signal::SIGTERM);
    process.ended(DRAIN).await.expect(0);
}

#[tokio::test]
async fn the_manifest_s_configuration_is_valid_and_serves() {
    let config = manifest()["ConfigMap"]["data"]["lookaside.yaml"].as_str().unwrap().to_owned();
    let file = TemporaryFile::new(&config);
    let args: Vec<String> = serde_json::from_value(container()["args"].clone()).unwrap();
    assert_eq!(args[..2], ["serve", "--config"], "{args:?}");
    let (process, ready) = serve(&["serve", "--config", file.path()], &[]).await;
    cli(&["--addr", ready["admin"].as_str().unwrap(), "health"]).await.expect(0);
    stop(process).await;
}

fn container() -> Value {
    manifest()["Deployment"]["spec"]["template"]["spec"]["containers"][0].clone()
}

#[tokio::test]
async fn the_manifest_s_ports_are_those_of_its_configuration() {
    let all = manifest();
    let config: Value = serde_saphyr::from_str(all["ConfigMap"]["data"]["lookaside.yaml"].as_str().unwrap()).unwrap();
    let port = |listener: &str| {
        let address = config["listen"][listener].as_str().unwrap();
        address.rsplit(':').next().unwrap().parse::<u64>().unwrap()
    };
    let container = container();
    let ports = container["ports"].as_array().unwrap();
    let named = |name: &str| ports.iter().find(|p| p["name"] == name).unwrap()["containerPort"].as_u64().unwrap();
    for listener in ["client", "metrics"] {
        assert_eq!(named(listener), port(listener), "{listener}");
    }
    for probe in ["startupProbe", "readinessProbe"] {
        assert_eq!(container[probe]["grpc"]["port"].as_u64(), Some(port("client")), "{probe}");
    }
    assert_eq!(container["livenessProbe"]["httpGet"]["port"], "metrics");
    let service = &all["Service"]["spec"];
    assert_eq!(service["clusterIP"], "None");
    for entry in service["ports"].as_array().unwrap() {
        let target = entry["targetPort"].as_str().unwrap();
        assert_eq!(entry["port"].as_u64(), Some(named(target)), "{target}");
    }
}

#[tokio::test]
async fn the_manifest_selects_its_own_pods_and_leaves_them_time_to_drain() {
    let all = manifest();
    let pod = &all["Deployment"]["spec"]["template"];
    let labels = &pod["metadata"]["labels"];
    assert_eq!(&all["Service"]["spec"]["selector"], labels);
    assert_eq!(&all["Deployment"]["spec"]["selector"]["matchLabels"], labels);
    assert_eq!(&all["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"], labels);
    let grace = Duration::from_secs(pod["spec"]["terminationGracePeriodSeconds"].as_u64().unwrap());
    assert!(grace >= DRAIN, "{grace:?}");
    let container = container();
    assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true);
    assert_eq!(pod["spec"]["securityContext"]["runAsNonRoot"], true);
    let user = pod["spec"]["securityContext"]["runAsUser"].as_u64().unwrap();
    assert!(text("docker/Dockerfile").contains(&format!("USER {user}:{user}")));
    // What it writes to is mounted.
    let args = container["args"].as_array().unwrap();
    let data = &args[args.iter().position(|arg| arg == "--data-dir").unwrap() + 1];
    assert!(container["volumeMounts"].as_array().unwrap().iter().any(|mount| &mount["mountPath"] == data));
}

#[tokio::test]
async fn the_unit_s_command_serves_and_tells_systemd_when() {
    let command = unit("ExecStart").remove(0);
    let words: Vec<&str> = command.split(' ').skip(1).collect();
    assert_eq!(words, ["serve", "--config", "/etc/lookaside/lookaside.yaml", "--data-dir", "%S/lookaside"]);
    assert_eq!(unit("Type"), ["notify"]);
    let stop_within = unit("TimeoutStopSec").remove(0);
    assert!(Duration::from_secs(stop_within.trim_end_matches('s').parse().unwrap()) >= DRAIN);

    let folder = TemporaryFile::new("");
    let socket = format!("{}.socket", folder.path());
    let manager = UnixDatagram::bind(&socket).unwrap();
    manager.set_read_timeout(Some(DRAIN)).unwrap();
    let config = path("lookaside.yaml");
    let args = ["serve", "--config", config.to_str().unwrap()];
    let (process, _) = serve(&args, &[("NOTIFY_SOCKET", &socket)]).await;
    assert_eq!(told(&manager), "READY=1");
    stop(process).await;
    assert_eq!(told(&manager), "STOPPING=1");
    fs::remove_file(socket).unwrap();
}

/// What a service manager was told next.
fn told(manager: &UnixDatagram) -> String {
    let mut buffer = [0; 256];
    let length = manager.recv(&mut buffer).unwrap();
    String::from_utf8_lossy(&buffer[..length]).trim_end().to_owned()
}

#[tokio::test]
async fn the_image_s_commands_are_the_binary_s() {
    assert_eq!(instruction("ENTRYPOINT"), ["/lookaside"]);
    let command = instruction("CMD");
    assert_eq!(command, ["serve", "--data-dir", "/var/lib/lookaside"]);
    assert!(text("docker/Dockerfile").contains(" /var/lib/lookaside\n"), "the image has the directory");
    let check = instruction("HEALTHCHECK");
    assert_eq!(check, ["/lookaside", "health"]);
    let (process, ready) = serve(&["serve"], &[]).await;
    cli(&["--addr", ready["admin"].as_str().unwrap(), &check[1]]).await.expect(0);
    stop(process).await;
    let _ = cli(&["--addr", ready["admin"].as_str().unwrap(), &check[1]]).await.expect(4);
}
