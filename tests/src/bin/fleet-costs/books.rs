//! What one look of the operator at a SplitModel's ledger costs, which it takes every two seconds, and how large the
//! status is that comes of it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use headway_operator::crd::status::Savings;
use headway_operator::savings::books::{Base, Books};
use headway_operator::savings::counters::{Counters, FIELDS, Reading};
use headway_operator::savings::ledger::{Ledger, Pod, Run};
use headway_operator::savings::report::{self, Facts};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

use crate::{ms, number};

const LOOKS: usize = 50;

pub fn measure(pods: &[usize], print: &mut impl FnMut(&str)) {
    print("## A look at the books\n");
    print(
        "| pods of the SplitModel | status, KiB | a look, ms | a new status, ms |\n|---|---|---|---|",
    );
    for &count in pods {
        print(&row(count));
    }
    print("");
}

fn row(pods: usize) -> String {
    let ledger = ledger(pods, 1);
    let status = savings(&ledger, None);
    let present: BTreeSet<String> = ledger.pods.keys().cloned().collect();
    let now = Instant::now();
    let mut books = Books::default();
    for (uid, pod) in &ledger.pods {
        books.saw(uid, &pod.name, &[], now);
        books.scraped(uid, reading(2));
    }
    let base = Base {
        version: "1".to_owned(),
        ledger,
    };
    let _ = books.needs_list(&base, &present);
    books.listed(&present, now);
    let started = Instant::now();
    for _ in 0..LOOKS {
        // As `Rounds::look` does it, up to whether a write is due.
        let base = Base {
            version: "1".to_owned(),
            ledger: report::ledger(Some(&status.clone())),
        };
        books.tidy(&base, &present, now);
        let _ = books.needs_list(&base, &present);
        let _ = std::hint::black_box((
            books.is_due(&base, &present, now),
            books.propose(&base, &present, now),
        ));
    }
    let look = started.elapsed();
    let proposed = books.propose(&base, &present, now).unwrap_or_default();
    let started = Instant::now();
    for _ in 0..LOOKS {
        let new = savings(&proposed, Some(&status));
        let _ = std::hint::black_box(serde_json::to_vec(&new));
    }
    let written = started.elapsed();
    let bytes = serde_json::to_vec(&status).unwrap_or_default().len();
    format!(
        "| {pods} | {:.1} | {:.2} | {:.2} |",
        number(bytes) / 1024.0,
        ms(look) / number(LOOKS),
        ms(written) / number(LOOKS),
    )
}

/// A ledger of pods that have been at work for days. `age`: what differs from one write to the next.
pub fn ledger(pods: usize, age: u64) -> Ledger {
    let pod = |index: usize| {
        let uid = format!("0f1e2d3c-4b5a-6978-8796-{index:012}");
        let run = reading(age);
        let runs = vec![Run {
            started_ms: run.started_ms,
            is_ended: false,
            counted: run.counters,
        }];
        let name = format!("llama-3-1-8b-tail-6c9b7d5f4-{index:05}");
        (uid, Pod { name, runs })
    };
    Ledger {
        totals: reading(age).counters,
        unread_endings: 0,
        pods: (0..pods).map(pod).collect::<BTreeMap<_, _>>(),
    }
}

/// The status that says `ledger`.
pub fn savings(ledger: &Ledger, before: Option<&Savings>) -> Savings {
    let now = Time(Timestamp::UNIX_EPOCH);
    let facts = Facts {
        pricing: None,
        unscraped: &[],
        now: &now,
    };
    report::savings(ledger, before, &facts)
}

fn reading(age: u64) -> Reading {
    let mut fields = [0; FIELDS];
    for (index, field) in (0_u64..).zip(&mut fields) {
        *field = 100_000_000_000 / (index + 1) + age;
    }
    Reading {
        started_ms: 1_767_225_600_125,
        counters: Counters::from_array(fields),
        is_final: false,
    }
}
