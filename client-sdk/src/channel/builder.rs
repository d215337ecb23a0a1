//! Collects what a channel needs to know, with a default for everything but the service.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use tokio::{
    runtime::Handle,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{Channel, Inner};
use crate::{
    Error, Tls,
    advice::Own,
    cache::Cache,
    call::Settings,
    deadlines::Defaults,
    fallback,
    list::List,
    pick_stream::{self, Identity},
    policy::{MethodPolicy, Methods},
    pool::Pool,
    room::WAITING_MAX,
    snapshot::ListSource,
    target::{self, Target},
};

const BALANCER_DEFAULT: &str = "127.0.0.1:7400";
/// The environment variable that names the folder of [`Builder::cache_dir`], for channels that are not given one.
pub const CACHE_DIR_VARIABLE: &str = "LOOKASIDE_CACHE_DIR";
/// How long balancers may take to answer until the list on disk serves. Where all of them refuse, it serves at once.
const CACHE_PATIENCE: Duration = Duration::from_millis(300);

/// Collects what a channel needs to know. Made by [`Channel::builder`].
#[derive(Debug, Clone)]
#[must_use = "a builder does nothing until connect() or lazy()"]
pub struct Builder {
    service: String,
    balancers: Vec<String>,
    static_endpoints: Vec<String>,
    fallback: Vec<String>,
    cache_dir: Option<PathBuf>,
    cache_age_max: Option<Duration>,
    client_id: Option<String>,
    identity: Identity,
    defaults: Defaults,
    connect_timeout: Duration,
    first_list_timeout: Duration,
    methods: Vec<(String, MethodPolicy)>,
    retry_budget_percent: Option<u32>,
    hedge_budget_percent: Option<u32>,
    endpoint_calls_max: Option<u32>,
    waiting_calls_max: u32,
    tls: Option<Tls>,
}

impl Builder {
    pub(super) fn new(service: String) -> Self {
        Self {
            service,
            balancers: Vec::new(),
            static_endpoints: Vec::new(),
            fallback: Vec::new(),
            cache_dir: std::env::var_os(CACHE_DIR_VARIABLE).filter(|dir| !dir.is_empty()).map(PathBuf::from),
            cache_age_max: None,
            client_id: None,
            identity: Identity { locality: String::new(), labels: BTreeMap::new(), tls: None },
            defaults: Defaults { deadline: Some(Duration::from_secs(15)), stream_idle: None, stream_life: None },
            connect_timeout: Duration::from_secs(1),
            first_list_timeout: Duration::from_secs(2),
            methods: Vec::new(),
            retry_budget_percent: None,
            hedge_budget_percent: None,
            endpoint_calls_max: None,
            waiting_calls_max: WAITING_MAX,
            tls: None,
        }
    }

    pub(super) fn target(mut self, target: Target) -> Self {
        match target {
            Target::Balancers { balancers, .. } => self.balancers = balancers,
            Target::Static { endpoints, .. } => self.static_endpoints = endpoints,
        }
        self
    }

    /// Client listeners of balancers, `host:port`; one is used, the others take over. A name stands for all its addresses, and
    /// is asked for again whenever a balancer is looked for. Default: `127.0.0.1:7400`.
    pub fn balancers<I, S>(mut self, balancers: I) -> Self
    where
        I: IntoIterator<Item = S>,
        S: Into<String>,
    {
        self.balancers = balancers.into_iter().map(Into::into).collect();
        self
    }

    /// Who this client is, unique per process and stable over reconnects. Default: the program's name and a random number.
    pub fn client_id(mut self, client_id: impl Into<String>) -> Self {
        self.client_id = Some(client_id.into());
        self
    }

    /// Where this client is: region/zone/subzone. Endpoints near it are preferred.
    pub fn locality(mut self, locality: impl Into<String>) -> Self {
        self.identity.locality = locality.into();
        self
    }

    /// A label that goes to the balancer with what else is said of this client. The balancer of this version has no policy that
    /// selects by one, and drops it.
    pub fn label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.identity.labels.insert(key.into(), value.into());
        self
    }

    /// Endpoints are connected to over TLS, and have to show the name that the list gives them; see [`crate::tls`]. Default:
    /// plaintext.
    pub fn tls(mut self, tls: Tls) -> Self {
        self.tls = Some(tls);
        self
    }

    /// Balancers are connected to over TLS, and have to show the host they were named by, or the name that this expects.
    /// Default: plaintext.
    pub fn balancer_tls(mut self, tls: Tls) -> Self {
        self.identity.tls = Some(tls);
        self
    }

    /// Endpoints, `host:port`, to use when no list has come within the first-list timeout; and beside the last list, while no
    /// balancer answers and nobody on that list can be reached. A name stands for all its addresses, and is asked for again
    /// while they are in use. The next list replaces them.
    pub fn fallback<I, S>(mut self, endpoints: I) -> Self
    where
        I: IntoIterator<Item = S>,
        S: Into<String>,
    {
        self.fallback = endpoints.into_iter().map(Into::into).collect();
        self
    }

    /// A folder, made if need be, that keeps the last complete list of the service. A channel that is made while no balancer
    /// answers starts with that list, and follows a balancer's as soon as one answers. Channels and processes may share the
    /// folder; only they should be able to write there, since calls go where its lists say. Not set, it is what
    /// `LOOKASIDE_CACHE_DIR` says; without either nothing is kept. [`crate::Snapshot`] tells when such a list is in use, and why
    /// one was refused.
    pub fn cache_dir(mut self, folder: impl Into<PathBuf>) -> Self {
        self.cache_dir = Some(folder.into());
        self
    }

    /// A list that no balancer has stood by for longer is not used from the cache. Default: no limit, since an old list
    /// beats none; a list's own time to live holds in any case.
    pub fn cache_age_max(mut self, age: Duration) -> Self {
        self.cache_age_max = Some(age);
        self
    }

    /// Time for calls whose caller set no deadline; zero means no limit. A timer of this side alone, never sent: it ends at the
    /// first response message or the second request message, so that streams are not cut by it. Default 15 s.
    pub fn default_deadline(mut self, deadline: Duration) -> Self {
        self.defaults.deadline = Some(deadline).filter(|d| !d.is_zero());
        self
    }

    /// Time for one connection to an endpoint to come about. Default 1 s.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// Time [`Builder::connect`] and early calls wait for the first list. Default 2 s.
    pub fn first_list_timeout(mut self, timeout: Duration) -> Self {
        self.first_list_timeout = timeout;
        self
    }

    /// Time an established stream may go without a message from the endpoint; then it ends with `DEADLINE_EXCEEDED`.
    /// Default: no limit, since many streams are quiet by nature; connections with calls on them are pinged, and so a dead peer
    /// is found within 30 s all the same.
    pub fn stream_idle_limit(mut self, limit: Duration) -> Self {
        self.defaults.stream_idle = Some(limit).filter(|d| !d.is_zero());
        self
    }

    /// Longest life of an established stream; then it ends with `CANCELLED`, to be opened again elsewhere. Default: no limit.
    pub fn stream_life_limit(mut self, limit: Duration) -> Self {
        self.defaults.stream_life = Some(limit).filter(|d| !d.is_zero());
        self
    }

    /// How the calls of a method are made: `"/package.Service/Method"`, `"/package.Service/"` for a whole service, or `""` for
    /// every method. Of what is said here the longest path that fits a call counts, whole; what a balancer says counts for
    /// calls that nothing said here fits.
    pub fn method(mut self, path: impl Into<String>, policy: MethodPolicy) -> Self {
        self.methods.push((path.into(), policy));
        self
    }

    /// Retries that may be sent per hundred calls that went well, all methods together. While most calls fail none are.
    /// Default: what the balancer says, and 10 until it has.
    pub fn retry_budget_percent(mut self, percent: u32) -> Self {
        self.retry_budget_percent = Some(percent);
        self
    }

    /// Hedges that may be sent per hundred calls that may be hedged. Default: what the balancer says, and 2 until it has.
    pub fn hedge_budget_percent(mut self, percent: u32) -> Self {
        self.hedge_budget_percent = Some(percent);
        self
    }

    /// Calls that one endpoint may have in flight from this channel; zero means any number. A call for which no endpoint has a
    /// place waits for one, within its deadline. Default: what the balancer says, and no limit until it has.
    pub fn endpoint_calls_max(mut self, calls: u32) -> Self {
        self.endpoint_calls_max = Some(calls);
        self
    }

    /// Calls that may wait for such a place; further ones fail at once with `RESOURCE_EXHAUSTED`. Default 1,000.
    pub fn waiting_calls_max(mut self, calls: u32) -> Self {
        self.waiting_calls_max = calls;
        self
    }

    /// Makes the channel and waits for the first list, as long as the first-list timeout at most. A balancer that answered
    /// without a list is enough: calls then say why there is none.
    ///
    /// # Errors
    /// When an address or a method's policy is malformed, or no balancer answered in time and no fallback is configured.
    pub async fn connect(self) -> Result<Channel, Error> {
        let patience = self.first_list_timeout;
        let waited_ms = u64::try_from(patience.as_millis()).unwrap_or(u64::MAX);
        let has_fallback = !self.fallback.is_empty();
        let channel = self.lazy()?;
        let pool = &channel.inner.pool;
        let mut lists = channel.inner.lists.clone();
        let listed = async { while !pool.has_list() && lists.changed().await.is_ok() {} };
        // Its time over, the channel says what there is.
        let _ = timeout(patience, listed).await;
        let (balancer, reason) = pool.with_view(|view| (view.balancer.clone(), view.trouble.clone()));
        if balancer.is_none() && !has_fallback && !pool.has_list() {
            let reason = if reason.is_empty() { "no answer".to_owned() } else { reason };
            return Err(Error::NoBalancer { service: pool.service.clone(), waited_ms, reason });
        }
        Ok(channel)
    }

    /// Makes the channel at once and connects in the background. Calls wait for the first list, as long as the first-list
    /// timeout at most.
    ///
    /// # Errors
    /// When an address or a method's policy is malformed, or outside of a tokio runtime.
    pub fn lazy(self) -> Result<Channel, Error> {
        let runtime = Handle::try_current().map_err(|_| Error::NoRuntime)?;
        let mut balancers = target::addresses(&self.balancers)?;
        if balancers.is_empty() {
            balancers.push(BALANCER_DEFAULT.to_owned());
        }
        let fallback = target::addresses(&self.fallback)?;
        let own = Own {
            methods: Methods::checked(self.methods)?,
            retry_budget_percent: self.retry_budget_percent,
            hedge_budget_percent: self.hedge_budget_percent,
            endpoint_calls_max: self.endpoint_calls_max,
        };
        let client_id = self.client_id.unwrap_or_else(default_client_id);
        let pool = Pool::new(self.service, client_id, self.connect_timeout, rand::random());
        pool.connect_over(self.tls);
        pool.advice.take_own(own);
        pool.room.set_waiting_max(self.waiting_calls_max);
        let stop = CancellationToken::new();
        let lists = pool.lists();
        let has_fallback = !fallback.is_empty();
        if self.static_endpoints.is_empty() {
            pool.change_view(|view| view.fallback_configured = has_fallback);
            let cache = self
                .cache_dir
                .map(|folder| Cache::new(folder, self.cache_age_max, &pool.service, &self.identity, &balancers));
            let work = follow(pool.clone(), self.identity, balancers, fallback, cache, self.first_list_timeout);
            runtime.spawn(stop.clone().run_until_cancelled_owned(work));
        } else {
            pool.apply(List::plain(&self.static_endpoints), ListSource::Static, None);
        }
        let settings = Settings { defaults: self.defaults, first_list: self.first_list_timeout, has_fallback };
        Ok(Channel { inner: Arc::new(Inner { pool, settings, stop, lists }) })
    }
}

/// Follows the balancers' lists, and until the first one what there is instead.
async fn follow(
    pool: Arc<Pool>,
    identity: Identity,
    balancers: Vec<String>,
    fallback: Vec<String>,
    cache: Option<Cache>,
    first_list_timeout: Duration,
) {
    if let Some(cache) = &cache {
        cache.load(&pool).await;
    }
    let keep = async {
        if let Some(cache) = &cache {
            cache.write(&pool).await;
        }
    };
    let remember = async {
        sleep(CACHE_PATIENCE).await;
        pool.use_cached();
    };
    let fall_back = fallback::stand_by(&pool, &fallback, first_list_timeout);
    let pick = pick_stream::run(pool.clone(), identity, balancers, cache.as_ref());
    tokio::join!(keep, remember, fall_back, pick);
}

/// The program's name, for people, and a number that no other process has.
fn default_client_id() -> String {
    let program = std::env::current_exe().ok();
    let name = program.as_ref().and_then(|p| p.file_stem()).and_then(|n| n.to_str()).unwrap_or("client");
    format!("{name}-{:08x}", rand::random::<u32>())
}
