//! Reads along on a connection: every HTTP/2 frame that is not part of the application's own traffic costs something, and
//! messages that we send earn it back, since a client answers them with window updates, pings and ends of streams. Who
//! overdraws is told ENHANCE_YOUR_CALM and cut. Counts frames by their heads alone and judges nothing else: the HTTP/2
//! library takes PING, SETTINGS, PRIORITY, WINDOW_UPDATE and unknown frames by the million per second.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Instant,
};

use crate::limits::{CONTROL_FRAMES_MAX, CONTROL_FRAMES_PER_STREAM, CONTROL_FRAMES_PERIOD};

/// What every HTTP/2 connection begins with (RFC 9113, 3.4).
pub(super) const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A connection spent more than it had.
#[derive(Debug, thiserror::Error)]
#[error("too many frames that carry no messages")]
pub(super) struct Flood;

/// GOAWAY, ENHANCE_YOUR_CALM: nothing is said of streams, as none is refused by it.
const GOAWAY: [u8; 17] = [0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 11];

/// For a message sent: a window update for the stream, one for the connection, and a ping to measure the bandwidth.
const EARNED_BY_MESSAGE: i64 = 3;

/// A message has a head of five bytes, and a field in it.
const MESSAGE_BYTES_MIN: u32 = 5;

/// A smaller frame of ours earns nothing: a window of a byte would make us send thousands.
const EARNING_BYTES_MIN: u32 = 16;

/// A stream costs more than other frames: with all that it needs it is not paid for by its first message.
const STREAM_COST: i64 = 3;

const DATA: u8 = 0;
const HEADERS: u8 = 1;

/// A connection whose preface has been read already; it is read again by the HTTP/2 library.
pub(super) struct Meter<I> {
    io: I,
    preface_read: usize,
    inbound: Frames,
    outbound: Frames,
    budget: Budget,
}

impl<I> Meter<I> {
    /// `streams` is how many the peer may have open.
    pub(super) fn new(io: I, streams: u32) -> Self {
        Self {
            io,
            preface_read: 0,
            inbound: Frames::default(),
            outbound: Frames::default(),
            budget: Budget::new(streams, Instant::now()),
        }
    }

    fn sent(&mut self, bytes: &[u8]) {
        let mut messages = 0;
        self.outbound.scan(bytes, |frame| {
            messages += i64::from(frame.kind == DATA && frame.length >= EARNING_BYTES_MIN);
        });
        self.budget.earn(messages * EARNED_BY_MESSAGE);
    }
}

impl<I: AsyncWrite + Unpin> Meter<I> {
    fn received(&mut self, context: &mut Context<'_>, bytes: &[u8]) -> io::Result<()> {
        let mut cost = 0;
        self.inbound.scan(bytes, |frame| {
            cost += match frame.kind {
                DATA => i64::from(frame.length < MESSAGE_BYTES_MIN),
                HEADERS => STREAM_COST,
                _ => 1,
            };
        });
        if self.budget.spend(cost, Instant::now()) {
            return Ok(());
        }
        if self.outbound.is_between() {
            // As far as there is room for it at this moment.
            let _ = Pin::new(&mut self.io).poll_write(context, &GOAWAY);
        }
        Err(io::Error::other(Flood))
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin> AsyncRead for Meter<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.preface_read < PREFACE.len() {
            let rest = &PREFACE[this.preface_read..];
            let taken = rest.len().min(buffer.remaining());
            buffer.put_slice(&rest[..taken]);
            this.preface_read += taken;
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.io).poll_read(context, buffer))?;
        let received = this.received(context, &buffer.filled()[before..]);
        if received.is_err() {
            // An error comes without bytes.
            buffer.set_filled(before);
        }
        Poll::Ready(received)
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Meter<I> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.io).poll_write(context, bytes))?;
        self.sent(&bytes[..written]);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.io).poll_write_vectored(context, parts))?;
        let mut left = written;
        for part in parts {
            let taken = part.len().min(left);
            self.sent(&part[..taken]);
            left -= taken;
        }
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}

/// The part of a frame's head that matters here.
struct Frame {
    length: u32,
    kind: u8,
}

/// Finds frames in bytes that come in pieces.
#[derive(Default)]
struct Frames {
    head: [u8; 9],
    head_read: usize,
    payload_left: u32,
}

impl Frames {
    fn scan(&mut self, mut bytes: &[u8], mut each: impl FnMut(&Frame)) {
        while !bytes.is_empty() {
            let skipped = bytes.len().min(usize::try_from(self.payload_left).unwrap_or(usize::MAX));
            self.payload_left -= u32::try_from(skipped).unwrap_or(self.payload_left);
            bytes = &bytes[skipped..];
            let taken = bytes.len().min(self.head.len() - self.head_read);
            self.head[self.head_read..self.head_read + taken].copy_from_slice(&bytes[..taken]);
            self.head_read += taken;
            bytes = &bytes[taken..];
            if self.head_read == self.head.len() {
                let [high, middle, low, kind, ..] = self.head;
                let length = u32::from_be_bytes([0, high, middle, low]);
                each(&Frame { length, kind });
                (self.head_read, self.payload_left) = (0, length);
            }
        }
    }

    /// Whether a frame may begin here.
    fn is_between(&self) -> bool {
        self.head_read == 0 && self.payload_left == 0
    }
}

/// What a connection may still send that is no message.
struct Budget {
    left: i64,
    max: i64,
    filled_at: Instant,
}

impl Budget {
    fn new(streams: u32, now: Instant) -> Self {
        let max = CONTROL_FRAMES_MAX + CONTROL_FRAMES_PER_STREAM * i64::from(streams);
        Self { left: max, max, filled_at: now }
    }

    fn earn(&mut self, frames: i64) {
        self.left = self.left.saturating_add(frames).min(self.max);
    }

    /// False when it is overdrawn.
    fn spend(&mut self, frames: i64, now: Instant) -> bool {
        let share = now.duration_since(self.filled_at).as_secs_f64() / CONTROL_FRAMES_PERIOD.as_secs_f64();
        let refill = (share * self.max as f64) as i64;
        if refill > 0 {
            self.earn(refill);
            self.filled_at = now;
        }
        self.left -= frames;
        self.left >= 0
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    const PING: [u8; 17] = [0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];

    #[test]
    fn frames_are_found_however_the_bytes_are_cut() {
        let bytes = [&PING[..], &[0, 0, 0, 4, 0, 0, 0, 0, 0], &[0, 0, 3, 0, 0, 0, 0, 0, 1, 7, 7, 7], &PING].concat();
        for size in 1..bytes.len() {
            let (mut frames, mut seen) = (Frames::default(), Vec::new());
            for piece in bytes.chunks(size) {
                frames.scan(piece, |frame| seen.push((frame.kind, frame.length)));
            }
            assert_eq!(seen, [(6, 8), (4, 0), (0, 3), (6, 8)], "in pieces of {size}");
            assert!(frames.is_between());
        }
    }

    #[test]
    fn a_budget_comes_back_with_time_and_with_messages_and_never_beyond_its_maximum() {
        let start = Instant::now();
        let mut budget = Budget::new(0, start);
        assert!(budget.spend(CONTROL_FRAMES_MAX, start));
        assert!(!budget.spend(1, start));
        budget.earn(2);
        assert!(budget.spend(1, start) && !budget.spend(1, start));
        let later = start + CONTROL_FRAMES_PERIOD;
        assert!(budget.spend(CONTROL_FRAMES_MAX - 2, later));
        let much_later = later + Duration::from_secs(3600);
        assert!(budget.spend(CONTROL_FRAMES_MAX, much_later) && !budget.spend(1, much_later));
    }

    #[tokio::test]
    async fn a_flood_of_pings_is_told_to_calm_down_and_cut() {
        let (mut peer, ours) = tokio::io::duplex(1 << 20);
        let mut meter = Meter::new(ours, 0);
        let pings = usize::try_from(CONTROL_FRAMES_MAX).unwrap() + 1;
        peer.write_all(&PING.repeat(pings)).await.unwrap();
        let mut read = Vec::new();
        let error = meter.read_to_end(&mut read).await.unwrap_err();
        assert!(error.get_ref().is_some_and(|source| source.is::<Flood>()), "{error}");
        assert!(read.starts_with(PREFACE));
        drop(meter);
        let mut told = Vec::new();
        peer.read_to_end(&mut told).await.unwrap();
        assert_eq!(told, GOAWAY);
    }

    #[tokio::test]
    async fn who_gets_messages_may_answer_each_with_window_updates_and_a_ping() {
        let (mut peer, ours) = tokio::io::duplex(1 << 20);
        let mut meter = Meter::new(ours, 0);
        let mut sink = vec![0; PREFACE.len()];
        meter.read_exact(&mut sink).await.unwrap();
        let message = [&[0, 0, 40, DATA, 0, 0, 0, 0, 1][..], &[7; 40]].concat();
        for _ in 0..10 * CONTROL_FRAMES_MAX {
            meter.write_all(&message).await.unwrap();
            let mut got = vec![0; message.len()];
            peer.read_exact(&mut got).await.unwrap();
            peer.write_all(&PING.repeat(3)).await.unwrap();
            let mut pings = [0; 3 * PING.len()];
            meter.read_exact(&mut pings).await.unwrap();
        }
    }
}
