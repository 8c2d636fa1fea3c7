//! What a run is judged by: counts over time, and the figures of the table.

use std::ops::Range;

use crate::clock::{MS, Micros, SECOND};
use crate::services::{END, FAULT};
use crate::world::HOPS;

/// Counts are kept for each so long.
const SLOT: Micros = 100 * MS;
const SLOTS_A_SECOND: usize = (SECOND / SLOT) as usize;

/// What happened in one run.
pub(crate) struct Record {
    /// Requests at the front: when they came, how long they took, whether they succeeded.
    answers: Vec<(Micros, Micros, bool)>,
    /// By hop and caller.
    calls: [Vec<Slots>; HOPS],
    attempts: [Vec<Slots>; HOPS],
    /// What each host of the deepest service was given to do.
    served: Vec<Slots>,
}

/// A number for each [`SLOT`].
#[derive(Clone)]
struct Slots(Vec<i64>);

impl Slots {
    fn new() -> Self {
        Self(vec![0; (END / SLOT) as usize + 1])
    }

    /// What comes later than the last request is left out.
    fn add(&mut self, at: Micros, n: i64) {
        if let Some(slot) = self.0.get_mut((at / SLOT) as usize) {
            *slot += n;
        }
    }

    fn during(&self, when: Range<Micros>) -> f64 {
        self.0[(when.start / SLOT) as usize..(when.end / SLOT) as usize].iter().sum::<i64>() as f64
    }
}

impl Record {
    /// Nothing yet; how many callers each hop has, and hosts the deepest service.
    pub(crate) fn new(callers: [usize; HOPS], hosts: usize) -> Self {
        let slots = || callers.map(|callers| vec![Slots::new(); callers]);
        Self { answers: Vec::new(), calls: slots(), attempts: slots(), served: vec![Slots::new(); hosts] }
    }

    /// A caller of that hop has a request.
    pub(crate) fn called(&mut self, hop: usize, by: usize, at: Micros) {
        self.calls[hop][by].add(at, 1);
    }

    /// Its sidecar makes an attempt, or takes back that it did.
    pub(crate) fn tried(&mut self, hop: usize, by: usize, at: Micros, n: i64) {
        self.attempts[hop][by].add(at, n);
    }

    /// A host of the deepest service is given something to do.
    pub(crate) fn served(&mut self, host: usize, at: Micros) {
        self.served[host].add(at, 1);
    }

    /// A request at the front ended.
    pub(crate) fn answered(&mut self, came: Micros, now: Micros, ok: bool) {
        self.answers.push((came, now - came, ok));
    }

    /// Attempts for each request that a hop's callers had.
    pub(crate) fn amplification(&self, hop: usize, when: Range<Micros>) -> f64 {
        sum(&self.attempts[hop], &when) / sum(&self.calls[hop], &when).max(1.0)
    }

    /// Further attempts of the fault's ten seconds as part of the requests of the busiest ten seconds that end within it,
    /// which is what a budget over ten seconds bounds; of each caller that had a hundred requests a second then.
    pub(crate) fn retries_of_busy(&self, hop: usize) -> Vec<f64> {
        let share = |(calls, attempts): (&Slots, &Slots)| {
            let span = FAULT.end - FAULT.start;
            let ends = (span.max(FAULT.start)..=FAULT.end).step_by(SLOT as usize);
            let most = ends.map(|end| calls.during(end - span..end)).fold(0.0, f64::max);
            (most >= 1_000.0).then(|| (attempts.during(FAULT) - calls.during(FAULT)) / most)
        };
        self.calls[hop].iter().zip(&self.attempts[hop]).filter_map(share).collect()
    }

    /// Attempts at the deepest service for each request at the front.
    pub(crate) fn end_to_end(&self, when: Range<Micros>) -> f64 {
        sum(&self.attempts[HOPS - 1], &when) / sum(&self.calls[0], &when).max(1.0)
    }

    /// Part of the requests that came then and succeeded.
    pub(crate) fn success(&self, when: Range<Micros>) -> f64 {
        let came: Vec<_> = self.answers.iter().filter(|(came, ..)| when.contains(came)).collect();
        came.iter().filter(|(_, _, ok)| *ok).count() as f64 / came.len().max(1) as f64
    }

    /// What ninety-nine of a hundred that came then and succeeded did not exceed; `None` where few did.
    pub(crate) fn p99(&self, when: Range<Micros>) -> Option<Micros> {
        let good = self.answers.iter().filter(|(came, _, ok)| *ok && when.contains(came));
        let mut took: Vec<_> = good.map(|(_, took, _)| *took).collect();
        took.sort_unstable();
        (took.len() >= 100).then(|| took[took.len() * 99 / 100])
    }

    /// Seconds from the fault's end until in each second at least 999 of 1000 requests succeed; `None`: not in this run.
    pub(crate) fn recovery(&self) -> Option<f64> {
        let (mut good, mut all) = (Slots::new(), Slots::new());
        for (came, _, ok) in &self.answers {
            all.add(*came, 1);
            good.add(*came, i64::from(*ok));
        }
        let bad = |from: &Micros| good.during(*from..*from + SECOND) < 0.999 * all.during(*from..*from + SECOND);
        since_last(bad)
    }

    /// Seconds from the fault's end until in each second every host of the deepest service has at least half of its even
    /// part of the requests; `None`: not in this run.
    pub(crate) fn back(&self) -> Option<f64> {
        let short = |from: &Micros| {
            let when = *from..*from + SECOND;
            let all: f64 = self.served.iter().map(|host| host.during(when.clone())).sum();
            self.served.iter().any(|host| host.during(when.clone()) < 0.5 * all / self.served.len() as f64)
        };
        // All later seconds would ask too much of chance: a hundred requests a second are spread unevenly now and then.
        let first = starts().find(|from| !short(from))?;
        Some((first - FAULT.end) as f64 / SECOND as f64)
    }

    /// Success and attempts at the deepest service for each half second, for the plot.
    pub(crate) fn course(&self) -> Vec<(f64, f64)> {
        let halves = (0..END / SECOND * 2).map(|half| half * SECOND / 2..(half + 1) * SECOND / 2);
        halves.map(|when| (self.success(when.clone()), sum(&self.attempts[HOPS - 1], &when) * 2.0)).collect()
    }

    /// The figures of the table, as its cells.
    pub(crate) fn cells(&self) -> [String; 8] {
        let percent = |share: f64| format!("{:.2} %", (share * 10_000.0).floor() / 100.0);
        let seconds = |seconds: Option<f64>| seconds.map_or("not in 9 s".into(), |s| format!("{s:.1} s"));
        let times = |hop| format!("{:.2}", self.amplification(hop, FAULT));
        [
            percent(self.success(FAULT)),
            times(0),
            times(1),
            times(2),
            format!("{:.2}", self.end_to_end(FAULT)),
            self.p99(FAULT).map_or("-".into(), |p99| format!("{} ms", p99 / MS)),
            seconds(self.recovery()),
            seconds(self.back()),
        ]
    }
}

fn sum(all: &[Slots], when: &Range<Micros>) -> f64 {
    all.iter().map(|slots| slots.during(when.clone())).sum()
}

/// Where whole seconds after the fault may begin.
fn starts() -> impl DoubleEndedIterator<Item = Micros> {
    (0..(END - FAULT.end) / SLOT + 1 - SLOTS_A_SECOND as u64).map(|slot| FAULT.end + slot * SLOT)
}

fn since_last(bad: impl Fn(&Micros) -> bool) -> Option<f64> {
    match starts().rev().find(bad) {
        None => Some(0.0),
        Some(last) if Some(last) == starts().next_back() => None,
        Some(last) => Some((last + SLOT - FAULT.end) as f64 / SECOND as f64),
    }
}
