//! A process of a benchmark: this program with other arguments, spoken to by lines of JSON. It ends when its parent does.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use lookaside_load::bench::Usage;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child as Process, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;

use crate::exit::{Exit, Failure};

/// No answer of a child takes longer: a benchmark always ends.
const ANSWER_MAX: Duration = Duration::from_secs(180);

/// Killed when dropped.
pub(super) struct Child {
    name: &'static str,
    process: Process,
    said: Lines<BufReader<ChildStdout>>,
    told: ChildStdin,
    /// Its configuration.
    folder: Option<PathBuf>,
}

impl Drop for Child {
    fn drop(&mut self) {
        if let Some(folder) = &self.folder {
            let _ = std::fs::remove_dir_all(folder);
        }
    }
}

impl Child {
    /// Starts one and waits for the line that says it is ready.
    pub(super) async fn start<Ready: DeserializeOwned>(
        name: &'static str,
        args: &[&str],
    ) -> Result<(Self, Ready), Failure> {
        let broken = |error: std::io::Error| Failure::new(Exit::Failed, format!("cannot start {name}: {error}"));
        let program = std::env::current_exe().map_err(broken)?;
        let mut process = Command::new(program)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(broken)?;
        let (Some(told), Some(said)) = (process.stdin.take(), process.stdout.take()) else {
            return Err(Failure::new(Exit::Failed, format!("cannot speak to {name}")));
        };
        let mut child = Self { name, process, said: BufReader::new(said).lines(), told, folder: None };
        let ready = child.hear().await?;
        Ok((child, ready))
    }

    /// `serve` with a configuration.
    pub(super) async fn balancer(config: &str) -> Result<(Self, Listeners), Failure> {
        let folder = std::env::temp_dir().join(format!("lookaside-bench-{}", std::process::id()));
        let file = folder.join("lookaside.yaml");
        std::fs::create_dir_all(&folder)?;
        std::fs::write(&file, config)?;
        let any = "127.0.0.1:0";
        let path = file.to_string_lossy();
        let args = ["serve", "--config", &path, "--listen-client", any, "--listen-admin", any, "--listen-metrics", any];
        let (mut child, at) = Self::start("the balancer", &[&args[..], &["--log", "warn"]].concat()).await?;
        child.folder = Some(folder);
        Ok((child, at))
    }

    /// Asks and waits for the answer.
    pub(super) async fn ask<Q: Serialize, A: DeserializeOwned>(&mut self, question: &Q) -> Result<A, Failure> {
        let line = serde_json::to_string(question).map_err(|error| self.failure(&error.to_string()))?;
        let told = self.told.write_all(format!("{line}\n").as_bytes()).await;
        told.map_err(|error| self.failure(&error.to_string()))?;
        self.hear().await
    }

    async fn hear<A: DeserializeOwned>(&mut self) -> Result<A, Failure> {
        let line = match timeout(ANSWER_MAX, self.said.next_line()).await {
            Ok(Ok(Some(line))) => line,
            Ok(Ok(None)) => return Err(self.failure("it ended")),
            Ok(Err(error)) => return Err(self.failure(&error.to_string())),
            Err(_) => return Err(self.failure("no answer")),
        };
        serde_json::from_str(&line).map_err(|error| self.failure(&format!("{error} in {line}")))
    }

    fn failure(&self, reason: &str) -> Failure {
        Failure::new(Exit::Failed, format!("{}: {reason}", self.name))
    }

    /// What it has used.
    pub(super) fn usage(&self) -> Usage {
        self.process.id().map(Usage::of).unwrap_or_default()
    }
}

/// Where a balancer listens.
#[derive(serde::Deserialize)]
pub(super) struct Listeners {
    pub(super) client: String,
    pub(super) admin: String,
    #[serde(flatten)]
    _others: Value,
}
