//! When to ask an HTTP/2 peer whether it is alive: a machine without IO.
//!
//! Only while streams are open and nothing at all has come for [`SILENCE`]. While the silence lasts the questions
//! become rare: servers made for gRPC end a connection that pings them more than twice in five minutes without having
//! been given an answer's bytes in between ("too_many_pings"), and a quiet stream is not a fault. What dies later
//! is found by TCP's own probes.

use std::time::Duration;

use tokio::time::Instant;

/// Without a byte for this long the peer is asked.
pub const SILENCE: Duration = Duration::from_secs(10);

/// It has this long to answer.
pub const ANSWER: Duration = Duration::from_secs(3);

/// How often the machine looks; silence is measured to this grain.
const LOOK: Duration = Duration::from_millis(2_500);

/// What to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Nothing.
    Rest,
    /// Send a PING.
    Ping,
    /// The peer did not answer: end the connection.
    Dead,
}

/// The state of one connection.
#[derive(Debug)]
pub struct Pings {
    heard: Instant,
    asked: Option<Instant>,
    /// PINGs answered in this silence.
    answered: u32,
}

impl Pings {
    /// A connection that was heard from just now.
    pub fn new(now: Instant) -> Self {
        Self { heard: now, asked: None, answered: 0 }
    }

    /// Looks at the connection; `heard` says whether bytes came since the last look.
    pub fn look(&mut self, now: Instant, heard: bool, streams: usize) -> Step {
        if heard || streams == 0 {
            self.heard = now;
            self.answered = 0;
        }
        if heard {
            // Any byte proves life; the answer itself may be queued behind others.
            self.asked = self.asked.map(|_| now);
        }
        match self.asked {
            Some(asked) if now.saturating_duration_since(asked) >= ANSWER => Step::Dead,
            Some(_) => Step::Rest,
            None if now.saturating_duration_since(self.heard) < self.patience() => Step::Rest,
            None => {
                self.asked = Some(now);
                Step::Ping
            }
        }
    }

    /// The PING was answered. The answer is no news from the peer's streams, so the silence goes on.
    pub fn pong(&mut self, now: Instant) {
        self.asked = None;
        self.heard = now;
        self.answered = self.answered.saturating_add(1);
    }

    /// When to look again; not before streams are opened where there are none.
    pub fn next(&self, now: Instant, streams: usize) -> Option<Instant> {
        match self.asked {
            Some(asked) => Some(asked + ANSWER),
            None => (streams > 0).then(|| now + LOOK),
        }
    }

    fn patience(&self) -> Duration {
        match self.answered {
            0 => SILENCE,
            1 => Duration::from_secs(60),
            _ => Duration::from_secs(300),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks as a connection's task would, until `until`; answers PINGs if `alive`. Gives the seconds of each step, and how often it looked.
    fn run(streams: usize, alive: bool, until: u64) -> (Vec<(u64, Step)>, usize) {
        let start = Instant::now();
        let (mut pings, mut now, mut seen, mut looks) = (Pings::new(start), start, Vec::new(), 0);
        while now < start + Duration::from_secs(until) {
            looks += 1;
            let step = pings.look(now, false, streams);
            if step != Step::Rest {
                seen.push(((now - start).as_secs(), step));
            }
            match step {
                Step::Dead => break,
                Step::Ping if alive => pings.pong(now),
                _ => {}
            }
            let Some(next) = pings.next(now, streams) else { break };
            now = next;
        }
        (seen, looks)
    }

    #[test]
    fn a_silent_peer_is_asked_and_then_given_up() {
        assert_eq!(run(1, false, 60).0, [(10, Step::Ping), (13, Step::Dead)]);
    }

    #[test]
    fn a_peer_that_answers_is_asked_ever_more_rarely() {
        assert_eq!(run(1, true, 700).0, [(10, Step::Ping), (70, Step::Ping), (370, Step::Ping), (670, Step::Ping)]);
    }

    #[test]
    fn without_streams_nobody_is_asked_and_nothing_looks() {
        assert_eq!(run(0, false, 1000), (vec![], 1));
    }

    #[test]
    fn bytes_end_the_silence_and_count_as_life() {
        let t = Instant::now();
        let at = |secs| t + Duration::from_secs(secs);
        let mut pings = Pings::new(t);
        assert_eq!(pings.look(at(9), true, 1), Step::Rest);
        assert_eq!(pings.look(at(18), false, 1), Step::Rest);
        assert_eq!(pings.look(at(19), false, 1), Step::Ping);
        assert_eq!(pings.look(at(21), true, 1), Step::Rest);
        assert_eq!(pings.look(at(23), false, 1), Step::Rest);
        assert_eq!(pings.look(at(24), false, 1), Step::Dead);
    }
}
