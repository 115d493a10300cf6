//! A thousand seeded lives of a SplitModel: pods that come, restart, are killed and go, two operators that write at
//! the same time, caches that lag, scrapes and answers that are late or lost.
//!
//! Each run of a process counts in bits of its own, so the totals say of each run how much of it they hold. What
//! they may never hold is more than the run did; what they must hold is said in [`World::check_end`].
//!
//! Half of the worlds are calm: operators are not restarted and watches do not break, so that all words are heard.
//! There nothing may be missing of a pod that was once in the ledger. In the others, what a run did after the last
//! reading that was written can be missing once it has ended, and is added up apart.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use fastrand::Rng;

use super::books::{Base, Books};
use super::counters::{Counters, FIELDS, Reading};
use super::ledger::Ledger;

const WORLDS: u64 = 1000;
const STEPS: usize = 400;
/// Bits of a field that one run has, so that twice what it did still fits.
const BITS: u32 = 12;
const MAX_DONE: u64 = (1 << (BITS - 1)) - 1;
const RUNS_PER_FIELD: usize = 5;
const MAX_RUNS_OF_A_WORLD: usize = RUNS_PER_FIELD * FIELDS;
const OPERATORS: usize = 2;

/// A run of a tail's process, as it really was.
struct Run {
    started_ms: i64,
    /// Units of work.
    done: u64,
    /// What of it stands in the file of last words.
    noted: u64,
}

/// What the API server says of a pod.
#[derive(Clone, Default)]
struct PodStatus {
    last_words: Vec<Reading>,
    is_running: bool,
}

struct Pod {
    uid: String,
    /// Indices of its runs.
    runs: Vec<usize>,
    is_running: bool,
    exists: bool,
    status: PodStatus,
}

/// A change that watches tell: `None` where the pod was deleted.
struct PodEvent {
    pod: usize,
    before_deletion: PodStatus,
    after: Option<PodStatus>,
}

/// A write on its way.
struct Patch {
    operator: usize,
    life: usize,
    base: Base,
    ledger: Ledger,
    present: BTreeSet<String>,
    told: BTreeMap<usize, u64>,
}

/// A scrape's answer on its way.
struct Answer {
    operator: usize,
    life: usize,
    uid: String,
    run: usize,
    done: u64,
    reading: Reading,
}

#[derive(Default)]
struct Operator {
    /// The most that each run has told it.
    told: BTreeMap<usize, u64>,
    books: Books,
    /// Which of its lives it is: a patch or an answer of an earlier one reaches nobody.
    life: usize,
    /// How much of each watch it has seen.
    seen_events: usize,
    seen_version: usize,
    cache: BTreeMap<usize, PodStatus>,
}

/// How often things happened, so that no fault is only on paper.
#[derive(Default, Debug)]
struct Tally {
    writes: usize,
    conflicts: usize,
    late_writes: usize,
    lost_answers: usize,
    kills: usize,
    restarts: usize,
    operator_restarts: usize,
    done: u64,
    missing: u64,
}

struct World {
    random: Rng,
    is_calm: bool,
    now: Instant,
    runs: Vec<Run>,
    pods: Vec<Pod>,
    events: Vec<PodEvent>,
    /// The ledger at each version of the SplitModel.
    versions: Vec<Ledger>,
    /// What the totals must hold of each run: what the writer of a ledger had been told of it.
    floor: BTreeMap<usize, u64>,
    operators: Vec<Operator>,
    patches: Vec<Patch>,
    answers: Vec<Answer>,
    tally: Tally,
}

fn place(run: usize) -> (usize, u32) {
    let offset = u32::try_from(run % RUNS_PER_FIELD).unwrap() * BITS;
    (run / RUNS_PER_FIELD, offset)
}

fn counters(run: usize, done: u64) -> Counters {
    let mut fields = [0; FIELDS];
    let (field, offset) = place(run);
    fields[field] = done << offset;
    Counters::from_array(fields)
}

/// How much of a run the totals hold.
fn held(totals: Counters, run: usize) -> u64 {
    let (field, offset) = place(run);
    (totals.to_array()[field] >> offset) & ((1 << BITS) - 1)
}

impl World {
    fn new(seed: u64) -> Self {
        let mut world = Self {
            random: Rng::with_seed(seed),
            is_calm: seed.is_multiple_of(2),
            now: Instant::now(),
            runs: Vec::new(),
            pods: Vec::new(),
            events: Vec::new(),
            versions: vec![Ledger::default()],
            floor: BTreeMap::new(),
            operators: Vec::new(),
            patches: Vec::new(),
            answers: Vec::new(),
            tally: Tally::default(),
        };
        world.operators.resize_with(OPERATORS, Operator::default);
        world
    }

    fn step(&mut self) {
        self.now += Duration::from_millis(self.random.u64(0..8000));
        let operator = self.random.usize(0..OPERATORS);
        match self.random.usize(0..100) {
            0..4 => self.create_pod(),
            4..30 => self.work(),
            30..36 => self.note(),
            36..42 => self.restart_container(),
            42..45 => self.end_pod(),
            45..47 => self.lose_node(),
            47..60 => self.watch_pods(operator, false),
            60..68 => self.watch_splitmodel(operator),
            68..82 => self.scrape(operator),
            82..86 => self.deliver_answer(),
            86..95 => self.round(operator),
            95..98 => self.deliver_patch(),
            _ => self.fail_operator(operator),
        }
        self.check_always();
    }

    fn uid_is_in_ledger(&self, pod: usize) -> bool {
        let ledger = self.versions.last().unwrap();
        ledger.pods.contains_key(&self.pods[pod].uid)
    }

    fn create_pod(&mut self) {
        if self.runs.len() >= MAX_RUNS_OF_A_WORLD {
            return;
        }
        let pod = self.pods.len();
        self.pods.push(Pod {
            uid: format!("uid-{pod}"),
            runs: Vec::new(),
            is_running: false,
            exists: true,
            status: PodStatus::default(),
        });
        self.start_run(pod);
        self.tell(pod);
    }

    fn start_run(&mut self, pod: usize) {
        let run = self.runs.len();
        self.runs.push(Run {
            started_ms: i64::try_from(run).unwrap() * 10,
            done: 0,
            noted: 0,
        });
        self.pods[pod].runs.push(run);
        self.pods[pod].is_running = true;
        self.pods[pod].status.is_running = true;
    }

    /// The kubelet writes the pod's status.
    fn tell(&mut self, pod: usize) {
        let status = self.pods[pod].status.clone();
        self.events.push(PodEvent {
            pod,
            before_deletion: status.clone(),
            after: self.pods[pod].exists.then_some(status),
        });
    }

    fn any_pod(&mut self) -> Option<usize> {
        let running = |pod: &usize| self.pods[*pod].is_running;
        let running: Vec<usize> = (0..self.pods.len()).filter(running).collect();
        self.random.choice(running)
    }

    fn running_run(&self, pod: usize) -> usize {
        *self.pods[pod].runs.last().unwrap()
    }

    fn work(&mut self) {
        let Some(pod) = self.any_pod() else { return };
        let run = self.running_run(pod);
        let more = self.random.u64(1..60);
        let done = &mut self.runs[run].done;
        *done = (*done + more).min(MAX_DONE);
    }

    fn note(&mut self) {
        let Some(pod) = self.any_pod() else { return };
        let run = self.running_run(pod);
        self.runs[run].noted = self.runs[run].done;
    }

    /// The process ends, by itself or killed. Its last words are what the kubelet finds.
    fn end_run(&mut self, pod: usize) {
        let run = self.running_run(pod);
        let is_killed = !self.is_calm && self.random.bool();
        self.tally.kills += usize::from(is_killed);
        if !is_killed {
            self.runs[run].noted = self.runs[run].done;
        }
        let words = Reading {
            started_ms: self.runs[run].started_ms,
            counters: counters(run, self.runs[run].noted),
            is_final: true,
        };
        let pod = &mut self.pods[pod];
        pod.is_running = false;
        // The status tells of the last run that has ended, and of no other.
        pod.status.last_words = vec![words];
        pod.status.is_running = false;
    }

    fn restart_container(&mut self) {
        if self.runs.len() >= MAX_RUNS_OF_A_WORLD {
            return;
        }
        let everybody_knows = self
            .operators
            .iter()
            .all(|operator| operator.seen_events == self.events.len());
        let Some(pod) = self.any_pod() else { return };
        if self.is_calm && !(everybody_knows && self.uid_is_in_ledger(pod)) {
            return;
        }
        self.tally.restarts += 1;
        self.end_run(pod);
        if self.random.bool() {
            self.tell(pod);
        }
        self.start_run(pod);
        self.tell(pod);
    }

    fn end_pod(&mut self) {
        let Some(pod) = self.any_pod() else { return };
        if self.is_calm && !self.uid_is_in_ledger(pod) {
            return;
        }
        self.end_run(pod);
        self.tell(pod);
        self.pods[pod].exists = false;
        self.tell(pod);
    }

    /// The pod is gone, and with it its words.
    fn lose_node(&mut self) {
        if self.is_calm {
            return;
        }
        let Some(pod) = self.any_pod() else { return };
        self.tally.kills += 1;
        self.pods[pod].is_running = false;
        self.pods[pod].exists = false;
        self.tell(pod);
    }

    /// Some events, or all of them.
    fn watch_pods(&mut self, index: usize, all: bool) {
        let operator = &mut self.operators[index];
        let left = self.events.len() - operator.seen_events;
        let count = if all || self.is_calm {
            left
        } else {
            self.random.usize(0..=left)
        };
        for event in &self.events[operator.seen_events..operator.seen_events + count] {
            let uid = &self.pods[event.pod].uid;
            operator
                .books
                .saw(uid, uid, &event.before_deletion.last_words, self.now);
            match &event.after {
                Some(status) => operator.cache.insert(event.pod, status.clone()),
                None => operator.cache.remove(&event.pod),
            };
        }
        operator.seen_events += count;
        // Books hear of an event before the cache shows it.
        if let Some(event) = self.events.get(operator.seen_events) {
            let uid = &self.pods[event.pod].uid;
            let words = &event.before_deletion.last_words;
            operator.books.saw(uid, uid, words, self.now);
        }
    }

    fn watch_splitmodel(&mut self, index: usize) {
        let latest = self.versions.len() - 1;
        let operator = &mut self.operators[index];
        operator.seen_version = self.random.usize(operator.seen_version..=latest);
    }

    /// Asks some of the pods that the operator takes for running. Some answers are lost, some late.
    fn scrape(&mut self, index: usize) {
        let targets: Vec<usize> = self.operators[index].cache.keys().copied().collect();
        for pod in targets {
            if !self.pods[pod].is_running || self.random.u8(0..4) == 0 {
                continue;
            }
            let run = self.running_run(pod);
            let answer = Answer {
                operator: index,
                life: self.operators[index].life,
                uid: self.pods[pod].uid.clone(),
                run,
                done: self.runs[run].done,
                reading: Reading {
                    started_ms: self.runs[run].started_ms,
                    counters: counters(run, self.runs[run].done),
                    is_final: false,
                },
            };
            self.answers.push(answer);
            if self.random.u8(0..5) > 0 {
                self.deliver_answer();
            }
        }
    }

    fn deliver_answer(&mut self) {
        if self.answers.is_empty() {
            return;
        }
        let answer = self
            .answers
            .swap_remove(self.random.usize(0..self.answers.len()));
        let operator = &mut self.operators[answer.operator];
        if operator.life == answer.life {
            operator.books.scraped(&answer.uid, answer.reading);
            let told = operator.told.entry(answer.run).or_default();
            *told = (*told).max(answer.done);
        }
    }

    fn present(&self, index: usize) -> BTreeSet<String> {
        let pods = self.operators[index].cache.keys();
        pods.map(|pod| self.pods[*pod].uid.clone()).collect()
    }

    /// One look of an operator at its books.
    fn round(&mut self, index: usize) {
        let present = self.present(index);
        let living: BTreeSet<String> = self
            .pods
            .iter()
            .filter(|pod| pod.exists)
            .map(|pod| pod.uid.clone())
            .collect();
        let operator = &mut self.operators[index];
        let base = Base {
            version: operator.seen_version.to_string(),
            ledger: self.versions[operator.seen_version].clone(),
        };
        operator.books.tidy(&base, &present, self.now);
        if operator.books.needs_list(&base, &present) {
            operator.books.listed(&living, self.now);
        }
        let Some(ledger) = operator.books.propose(&base, &present, self.now) else {
            return;
        };
        if ledger == base.ledger || !operator.books.is_due(&base, &present, self.now) {
            return;
        }
        self.patches.push(Patch {
            operator: index,
            life: operator.life,
            base,
            ledger,
            present,
            told: operator.told.clone(),
        });
        if self.random.u8(0..4) > 0 {
            self.deliver_patch();
        } else {
            self.tally.late_writes += 1;
        }
    }

    /// The API server takes a patch of its own version, and refuses any other.
    fn deliver_patch(&mut self) {
        if self.patches.is_empty() {
            return;
        }
        let patch = self
            .patches
            .swap_remove(self.random.usize(0..self.patches.len()));
        let latest = (self.versions.len() - 1).to_string();
        if patch.base.version != latest {
            self.tally.conflicts += 1;
            return;
        }
        self.tally.writes += 1;
        self.raise_floor(&patch);
        self.versions.push(patch.ledger.clone());
        let is_answer_lost = self.random.u8(0..6) == 0;
        self.tally.lost_answers += usize::from(is_answer_lost);
        let operator = &mut self.operators[patch.operator];
        if operator.life == patch.life && !is_answer_lost {
            let Patch {
                base,
                ledger,
                present,
                ..
            } = patch;
            operator.books.written(&base, ledger, &present, self.now);
        }
    }

    /// Of a run that the ledger names and that goes on as far as is known, all is in it that its writer was told.
    fn raise_floor(&mut self, patch: &Patch) {
        for (run, told) in &patch.told {
            let started_ms = self.runs[*run].started_ms;
            let is_live = |pod: &super::ledger::Pod| {
                let mut runs = pod.runs.iter();
                runs.any(|known| known.started_ms == started_ms && !known.is_ended)
            };
            if patch.ledger.pods.values().any(is_live) {
                let floor = self.floor.entry(*run).or_default();
                *floor = (*floor).max(*told);
            }
        }
    }

    /// The operator is restarted, or its watch breaks and begins anew.
    fn fail_operator(&mut self, index: usize) {
        if self.is_calm {
            return;
        }
        if self.random.bool() {
            self.tally.operator_restarts += 1;
            let life = self.operators[index].life + 1;
            self.operators[index] = Operator {
                life,
                seen_version: self.versions.len() - 1,
                ..Operator::default()
            };
        }
        let operator = &mut self.operators[index];
        operator.seen_events = self.events.len();
        operator.cache.clear();
        for (index, pod) in self.pods.iter().enumerate().filter(|(_, pod)| pod.exists) {
            operator
                .books
                .saw(&pod.uid, &pod.uid, &pod.status.last_words, self.now);
            operator.cache.insert(index, pod.status.clone());
        }
    }

    /// Never too much, and nothing that was there is gone.
    fn check_always(&self) {
        let totals = self.versions.last().unwrap().totals;
        for (index, run) in self.runs.iter().enumerate() {
            let held = held(totals, index);
            assert!(held <= run.done, "run {index}: {held} of {}", run.done);
            let floor = self.floor.get(&index).copied().unwrap_or(0);
            assert!(held >= floor, "run {index}: {held} below {floor}");
        }
        for pair in self.versions.windows(2) {
            let lost = pair[0].totals.since(pair[1].totals);
            assert_eq!(lost, Counters::default(), "totals fell");
        }
    }

    /// The faults end, and everything arrives that still can.
    fn settle(&mut self) {
        while !self.patches.is_empty() {
            self.deliver_patch();
        }
        for _ in 0..20 {
            for index in 0..OPERATORS {
                self.now += Duration::from_secs(300);
                self.operators[index].seen_version = self.versions.len() - 1;
                self.watch_pods(index, true);
                self.scrape(index);
                self.round(index);
                while !self.patches.is_empty() {
                    self.deliver_patch();
                }
            }
            self.check_always();
        }
    }

    fn check_end(&mut self) {
        let ledger = self.versions.last().unwrap();
        for pod in &self.pods {
            for run in &pod.runs {
                let done = self.runs[*run].done;
                let missing = done - held(ledger.totals, *run);
                let is_live = pod.is_running && pod.runs.last() == Some(run);
                if self.is_calm || is_live {
                    assert_eq!(missing, 0, "of run {run}, live {is_live}");
                }
                self.tally.done += done;
                self.tally.missing += missing;
            }
        }
        let known: BTreeSet<&str> = ledger.pods.keys().map(String::as_str).collect();
        let existing = self.pods.iter().filter(|pod| pod.exists);
        assert_eq!(known, existing.map(|pod| pod.uid.as_str()).collect());
        // An unchanged cluster causes no writes.
        let before = self.versions.len();
        for index in 0..OPERATORS {
            self.now += Duration::from_secs(60);
            self.scrape(index);
            self.round(index);
        }
        assert_eq!(self.versions.len(), before, "a write without a change");
        assert!(self.patches.is_empty(), "a patch without a change");
    }
}

#[test]
fn totals_equal_the_truth_in_a_thousand_fault_sequences() {
    let (mut calm, mut stormy) = (Tally::default(), Tally::default());
    for seed in 0..WORLDS {
        let mut world = World::new(seed);
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            (0..STEPS).for_each(|_| world.step());
            world.settle();
            world.check_end();
        }));
        assert!(outcome.is_ok(), "seed {seed}");
        let sum = if world.is_calm {
            &mut calm
        } else {
            &mut stormy
        };
        let tally = world.tally;
        sum.writes += tally.writes;
        sum.conflicts += tally.conflicts;
        sum.late_writes += tally.late_writes;
        sum.lost_answers += tally.lost_answers;
        sum.kills += tally.kills;
        sum.restarts += tally.restarts;
        sum.operator_restarts += tally.operator_restarts;
        sum.done += tally.done;
        sum.missing += tally.missing;
    }
    println!("calm: {calm:?}\nstormy: {stormy:?}");
    for tally in [&calm, &stormy] {
        assert!(tally.writes > 1000 && tally.conflicts > 1000 && tally.late_writes > 1000);
        assert!(tally.lost_answers > 100 && tally.restarts > 100);
    }
    assert_eq!(calm.missing, 0);
    assert!(stormy.kills > 100 && stormy.operator_restarts > 100);
    assert!(stormy.missing > 0 && stormy.missing < stormy.done);
}
