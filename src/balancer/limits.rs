//! Every maximum of the balancer that is not configured, each with what happens there.

use std::{ops::Range, time::Duration};

use lookaside_core::limits::ORDER_LIST_PERIOD;

/// Events waiting for the driver. When it is full, whoever has one to tell waits: nothing is lost.
pub(crate) const EVENTS_WAITING_MAX: usize = 10_000;

/// Events taken into one turn; the rest waits for the next, 5 ms later.
pub(crate) const EVENTS_PER_TURN_MAX: usize = 10_000;

/// Between two turns of the driver, so that a herd of changes makes one list. A longer turn pauses as long as it took.
pub(crate) const TURN_PAUSE_MIN: Duration = Duration::from_millis(5);

/// After this a turn is made without an event: time passes for leases and reports.
pub(crate) const TURN_PAUSE_MAX: Duration = Duration::from_millis(100);

/// Outcomes waiting for one turn, by client, service and endpoint. Beyond it those of further ones are dropped and
/// counted: at 10 turns a second this is a million a second.
pub(crate) const OUTCOME_SLOTS_MAX: usize = 100_000;

/// Reports waiting for one turn, one per backend. Beyond it a further backend's is dropped and counted; its next one
/// says as much.
pub(crate) const REPORT_SLOTS_MAX: usize = 100_000;

/// Decisions kept for those who ask later; the oldest goes.
pub(crate) const DECISIONS_KEPT_MAX: usize = 1_000;

/// Decisions that wait for a slow reader; beyond it, those that it misses are left out.
pub(crate) const DECISIONS_WAITING_MAX: usize = 64;

/// How long an order waits to be on disk before it is answered all the same: it holds, only a restart would forget it.
pub(crate) const SAVE_WAIT_MAX: Duration = Duration::from_secs(1);

/// How long the end of the balancer waits for what is not on disk yet, once everybody has moved on; a disk that hangs is
/// left behind.
pub(crate) const STOP_WAIT_MAX: Duration = Duration::from_secs(5);

/// A failed save is tried again after this.
pub(crate) const SAVE_RETRY: Duration = Duration::from_secs(5);

/// A larger file of overrides is put aside and not used: it is not ours.
pub(crate) const OVERRIDES_FILE_BYTES_MAX: u64 = 64 << 20;

/// A larger configuration file is refused. 10,000 services with a few endpoints each are about 4 MB.
pub(crate) const CONFIG_FILE_BYTES_MAX: u64 = 32 << 20;

/// Between two saves of words that backends repeat: a backend that makes up new ones all the time must not keep the disk
/// busy. Orders are saved at once.
pub(crate) const HEARD_SAVE_PERIOD: Duration = Duration::from_secs(1);

/// A larger snapshot is neither written nor read: at some 250 bytes an endpoint this is a million of them.
pub(crate) const SNAPSHOT_FILE_BYTES_MAX: u64 = 256 << 20;

/// Between two writes of the snapshot at least, and so many times as long as the last one took: a tenth of the disk's time
/// at most.
pub(crate) const SAVE_PAUSE_MIN: Duration = Duration::from_secs(1);
pub(crate) const SAVE_PAUSE_TIMES: u32 = 10;

/// Mistakes of a refused configuration that are logged and shown in the status; `lookaside validate` has the others.
pub(crate) const REFUSED_REASONS_MAX: usize = 10;

/// How often the configuration file is looked at though nobody said that it changed.
pub(crate) const CONFIG_LOOK_PERIOD: Duration = Duration::from_secs(5);

/// So long nothing must happen to the file before it is read: whoever writes it may not be done. But not for ever.
pub(crate) const CONFIG_QUIET: Duration = Duration::from_millis(100);
pub(crate) const CONFIG_QUIET_WAIT_MAX: Duration = Duration::from_secs(1);

/// What a peer may have sent on one stream before we have read it. Our messages are small.
pub(crate) const STREAM_WINDOW_BYTES: u32 = 64 << 10;

/// What a peer may have sent on one connection before we have read it. Large for the sake of the HTTP/2 library, which
/// cuts connections with more unread small frames than half of this.
pub(crate) const CONNECTION_WINDOW_BYTES: u32 = 4 << 20;

/// What waits on one stream for a peer that reads slowly; further lists wait in one slot, the newest in place of others.
pub(crate) const SEND_BUFFER_BYTES_MAX: usize = 128 << 10;

/// Connections of one listener that the kernel keeps until they are accepted, if its own limit (`net.core.somaxconn`) is
/// no lower. Beyond it the kernel does not answer, and the peer tries again after 1 s, 3 s and 7 s: a herd must fit.
pub(crate) const CONNECTIONS_WAITING_MAX: u32 = 4_096;

/// Connections of one listener between their first byte and their first request. A further one waits, and is closed after
/// half the handshake deadline. Each takes some 20 KiB once HTTP/2 is spoken.
pub(crate) const HANDSHAKES_MAX: usize = 1_024;

/// The same of one peer: whoever only begins connections is in the way of nobody but itself.
pub(crate) const HANDSHAKES_PER_PEER_MAX: usize = 256;

/// A connection without a request is told to go away, and cut after this.
pub(crate) const GOAWAY_WAIT: Duration = Duration::from_secs(1);

/// Frames without messages (HEADERS, RST_STREAM, PING, SETTINGS, PRIORITY, WINDOW_UPDATE, unknown ones, empty DATA) that a
/// connection may send in [`CONTROL_FRAMES_PERIOD`], beside those that answer messages of ours. Beyond it the connection
/// is told ENHANCE_YOUR_CALM and cut.
pub(crate) const CONTROL_FRAMES_MAX: i64 = 1_000;

/// More of them for each stream that a connection may have: it can be opened and given up.
pub(crate) const CONTROL_FRAMES_PER_STREAM: i64 = 4;

/// The time in which the budget of control frames is filled again.
pub(crate) const CONTROL_FRAMES_PERIOD: Duration = Duration::from_secs(10);

/// From this part of `limits.memory_mib` on no new connection is accepted: it is closed at once and counted.
pub(crate) const CONNECTIONS_BELOW_PERCENT: u64 = 80;

/// From this part of it on no new stream either, but for health and reflection: it is refused and told when to come back.
/// What is left is for those who are there.
pub(crate) const STREAMS_BELOW_PERCENT: u64 = 90;

/// Between two looks at the memory that is taken.
pub(crate) const CEILING_LOOK_PERIOD: Duration = Duration::from_millis(25);

/// Streams of a connection beside picks: reports, health, reflection, administration. A further one is refused.
pub(crate) const OTHER_STREAMS_MAX: usize = 100;

/// A request that has not been answered by then, mostly since it did not come to its end, is ended with DEADLINE_EXCEEDED.
pub(crate) const REQUEST_WAIT_MAX: Duration = Duration::from_secs(10);

/// Who is turned away for want of room is asked to come back after a time from this range.
pub(crate) const PUSHBACK: Range<Duration> = Duration::from_millis(500)..Duration::from_millis(3_000);

/// Larger headers are refused.
pub(crate) const HEADER_LIST_BYTES_MAX: u32 = 8 << 10;

/// Streams that a peer opened and gave up at once; beyond it the connection is cut (CVE-2023-44487).
pub(crate) const RESETS_PENDING_MAX: usize = 20;

/// Subscriptions of one pick stream; a further one is answered by a service error.
pub(crate) const SUBSCRIPTIONS_PER_STREAM_MAX: usize = 1_000;

/// Cohorts of one service that are told apart. Clients say where they are: those from further places get the list of an
/// unknown one.
pub(crate) const COHORTS_PER_SERVICE_MAX: usize = 4_096;

/// Subscriptions on all streams of a connection; a further one is answered by a service error.
pub(crate) const SUBSCRIPTIONS_PER_CONNECTION_MAX: usize = 10_000;

/// Subscriptions of a peer for each stream that it may have (`limits.streams_per_peer`), so 50,000 by default; a further one
/// is answered by a service error. Each takes about a kilobyte, also of a name that nobody knows.
pub(crate) const PEER_SUBSCRIPTIONS_PER_STREAM: usize = 2;

/// Errors that wait for a client to read; further ones are dropped, since it does not care.
pub(crate) const ERRORS_WAITING_MAX: usize = 64;

/// Lists that a client may say it holds; a hello with more ends the stream.
pub(crate) const HELD_LISTS_MAX: usize = 256;

/// Endpoints that clients brought on the streams of a connection and that are kept until they use lists of ours, some 50
/// bytes each; the stream that exceeds it is ended and told when to come back.
pub(crate) const HELD_ENDPOINTS_PER_CONNECTION_MAX: usize = 100_000;

/// What a client brought and did not subscribe to by then is forgotten.
pub(crate) const HELD_WAIT_MAX: Duration = Duration::from_secs(30);

/// A larger hello ends its stream. It names every endpoint of every list that the client holds: some 25,000 of them.
pub(crate) const HELLO_BYTES_MAX: usize = 1 << 20;

/// A larger message of a client ends its stream, but for [`OUTCOME_BYTES_MAX`] more by endpoint in the longest list that
/// it has: it tells of each.
pub(crate) const PICK_REQUEST_BYTES_MAX: usize = 16 << 10;

/// What a client has to say of one endpoint: its address, counts, and a line of detail.
pub(crate) const OUTCOME_BYTES_MAX: usize = 640;

/// Messages on the streams of one connection that have begun and not come to their end, bytes; the stream that exceeds it
/// is ended and told when to come back.
pub(crate) const UNFINISHED_BYTES_PER_CONNECTION_MAX: usize = 2 << 20;

/// Messages that a client may send in [`MESSAGES_PERIOD`], beside one for each that it is sent; with one more its stream is
/// ended and told when to come back. It may subscribe to all it can have, and change its mind.
pub(crate) const MESSAGES_MAX: usize = 2_500;

/// More of them by service subscribed to: outcomes each second, and suspicions up to 20 a second.
pub(crate) const MESSAGES_PER_SERVICE: usize = 220;

/// The time in which that many may come.
pub(crate) const MESSAGES_PERIOD: Duration = Duration::from_secs(10);

/// First lists of streams go out at this rate, in bytes, so that a herd leaves time for those who have theirs.
pub(crate) const ADMITTED_BYTES_PER_SECOND: usize = 64 << 20;

/// So many of them may go at once after a time with less.
pub(crate) const ADMITTED_BYTES_AT_ONCE: usize = 4 << 20;

/// What a first list counts beside its own bytes: 4,000 streams a second at most.
pub(crate) const FIRST_LIST_COST_BYTES: usize = 16 << 10;

/// A stream that would wait longer for its first list is ended and told when to come back.
pub(crate) const ADMISSION_WAIT_MAX: Duration = Duration::from_secs(3);

/// Larger requests to health and reflection are refused: they carry a name. So are larger answers to health checks.
pub(crate) const SMALL_REQUEST_BYTES_MAX: usize = 4 << 10;

/// Larger requests to the admin service are refused.
pub(crate) const ADMIN_REQUEST_BYTES_MAX: usize = 64 << 10;

/// A client that has not read for this long loses its stream; others on its connection go on.
pub(crate) const UNREAD_MAX: Duration = Duration::from_secs(30);

/// A stream without its hello for this long ends.
pub(crate) const HELLO_WAIT_MAX: Duration = Duration::from_secs(5);

/// Between two heartbeats of a service to a cohort. A list that differs in order alone goes out in place of one.
pub(crate) const HEARTBEAT_PERIOD: Duration = ORDER_LIST_PERIOD;

/// Between two ticks of a service to a cohort, where how its endpoints fare is news.
pub(crate) const FLEET_PERIOD: Duration = lookaside_core::limits::FLEET_PERIOD;

/// While the balancer settles, a client that holds no list waits this long from the start for others to be heard.
pub(crate) const NEWCOMER_WAIT: Duration = Duration::from_secs(2);

/// Lists sent to a client and not acknowledged yet that are remembered; of an older one it is assumed that the client
/// no longer uses it.
pub(crate) const UNACKNOWLEDGED_LISTS_MAX: usize = 16;

/// A larger count in outcomes is refused as absurd.
pub(crate) const OUTCOME_COUNT_MAX: u64 = 1_000_000_000;

/// After this a list sent and not acknowledged counts as not in sync.
pub(crate) const ACK_WAIT: Duration = Duration::from_secs(5);

/// Connections to the metrics listener; a further one is closed at once.
pub(crate) const METRICS_CONNECTIONS_MAX: usize = 64;

/// The same of one peer: nobody is to keep others from asking whether the balancer lives.
pub(crate) const METRICS_CONNECTIONS_PER_PEER_MAX: usize = 16;

/// Time for the head of a request to the metrics listener; then its connection is closed.
pub(crate) const METRICS_HEAD_WAIT: Duration = Duration::from_secs(2);

/// Time for a request to the metrics listener and its answer.
pub(crate) const METRICS_DEADLINE: Duration = Duration::from_secs(10);

/// Between two renderings of the page of metrics: whoever asks in between waits for the next one.
pub(crate) const METRICS_PERIOD_MIN: Duration = Duration::from_millis(100);

/// A larger report ends its stream with MESSAGE_TOO_LARGE.
pub(crate) const REPORT_BYTES_MAX: usize = 64 << 10;

/// A report with more overrides is refused: at most a few concern one endpoint at a time.
pub(crate) const REPORTED_OVERRIDES_MAX: usize = 64;

/// Words from further in the future are refused: they would hold against any later order. Clocks differ by less.
pub(crate) const CLOCKS_DIFFER_MAX: Duration = Duration::from_secs(300);

/// Between two reports of one stream that are acted on; of those in between the newest counts.
pub(crate) const REPORT_PERIOD_MIN: Duration = Duration::from_millis(20);

/// A report stream that has not registered by then is ended.
pub(crate) const REGISTRATION_WAIT_MAX: Duration = Duration::from_secs(5);

/// Between two registrations of one stream by the balancer itself: of a backend that reports, but is not in the table.
pub(crate) const REGISTRATION_PERIOD_MIN: Duration = Duration::from_secs(1);

/// Backends that are registered on the connections of one peer; a further one is refused and told when to come back. Many
/// may share a machine, or an address before us.
pub(crate) const REGISTRATIONS_PER_PEER_MAX: usize = 1_000;

/// Time for a client to hear why its stream ends; then it ends without words.
pub(crate) const LAST_WORDS_WAIT: Duration = Duration::from_secs(5);

/// Between two looks at the newest snapshot for one report stream: overrides reach a backend this much later at most.
pub(crate) const REPORT_LOOK_PERIOD: Duration = Duration::from_millis(100);

/// Between two looks at the newest snapshot for endpoints to be checked.
pub(crate) const PROBE_LOOK_PERIOD: Duration = Duration::from_millis(20);

/// Between two words of one Watch that are passed on; of those in between the newest counts.
pub(crate) const WATCH_PERIOD_MIN: Duration = Duration::from_millis(100);

/// Services with a label of their own in metrics, over the life of the process; further ones are counted together as
/// `other`, since a label once used is kept for ever.
pub(crate) const SERVICE_LABELS_MAX: usize = 1_000;

/// A token of operators that is shorter is refused at the start: it could be guessed.
pub(crate) const TOKEN_BYTES_MIN: usize = 16;

/// A longer one is refused as well: it is not a token, but some other file.
pub(crate) const TOKEN_BYTES_MAX: usize = 4_096;

/// Between two attempts to open the same way to connect to endpoints over TLS while its files are of no use.
pub(crate) const OPEN_PERIOD_MIN: Duration = Duration::from_secs(1);

/// Ways to connect to endpoints over TLS that are kept open; beyond them, which takes as many reloads, all are read anew.
pub(crate) const OPENED_MAX: usize = 10_000;
/// Questions to name servers under way for one DNS name; further ones wait.
pub(crate) const DNS_LOOKUPS_PER_SOURCE_MAX: usize = 16;

/// Questions to name servers under way for all DNS names; further ones wait.
pub(crate) const DNS_LOOKUPS_MAX: usize = 256;

/// A name server that has not answered by then is asked once more, or the next one is.
pub(crate) const DNS_REPLY_WAIT: Duration = Duration::from_secs(2);

/// Time for all questions of one round about one DNS name. What is not answered by then has failed.
pub(crate) const DNS_ROUND_MAX: Duration = Duration::from_secs(10);

/// Aliases (CNAME) followed in a row; with a further one the answer has failed.
pub(crate) const DNS_ALIASES_MAX: usize = 8;

/// Targets of SRV records; an answer that names more is refused whole, and its source turns stale.
pub(crate) const DNS_TARGETS_MAX: usize = 1_000;

/// An answer that there is nothing is believed when it was given this often in a row; until then it counts as a failure.
pub(crate) const DNS_EMPTY_TRIES: u32 = 3;
