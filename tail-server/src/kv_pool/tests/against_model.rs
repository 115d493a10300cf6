//! Random sequences of operations on a pool, and on a model of it that has no structure: it looks through all
//! columns for every answer. What the pool answers, and what it holds afterwards, must be what the model says.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::super::*;

/// What a prompt's column is known by: everything up to it.
type Key = Vec<u8>;

const RETENTION_MS: u64 = 20;

/// Choices of a lease below this mean a live one.
const LIVE_CHOICES: usize = 60;

#[derive(Debug, Clone)]
enum Operation {
    /// A session of a prompt of as many columns, which offers the keys of the first `offered` of them.
    Reserve {
        layers: usize,
        prompt: Key,
        more_columns: usize,
        offered: usize,
    },
    /// A session that offers whatever it likes.
    ReserveOdd {
        layers: usize,
        columns: usize,
        offered: Vec<Key>,
    },
    /// Like the others below: of a lease, which may be released already.
    Take {
        lease: usize,
    },
    /// All columns that are left, and then all are kept by the prompt's keys.
    TakeAndKeepAll {
        lease: usize,
    },
    /// By the prompt's key.
    Keep {
        lease: usize,
        index: usize,
    },
    /// By any key.
    KeepOdd {
        lease: usize,
        index: usize,
        key: Key,
    },
    Release {
        lease: usize,
    },
    Expire,
    Wait {
        ms: u64,
    },
}

fn operation() -> impl Strategy<Value = Operation> {
    let token = || prop_oneof![4 => Just(0u8), 1 => Just(1)];
    let prompt = move || prop::collection::vec(token(), 0..5);
    let lease = || 0..LIVE_CHOICES + 4;
    prop_oneof![
        6 => (1..4usize, prompt(), 0..2usize, 0..10usize).prop_map(
            |(layers, prompt, more_columns, offered)| Operation::Reserve {
                layers,
                prompt,
                more_columns,
                offered,
            }
        ),
        2 => (0..4usize, 0..4usize, prop::collection::vec(prompt(), 0..4)).prop_map(
            |(layers, columns, offered)| Operation::ReserveOdd {
                layers,
                columns,
                offered,
            }
        ),
        8 => lease().prop_map(|lease| Operation::TakeAndKeepAll { lease }),
        4 => lease().prop_map(|lease| Operation::Take { lease }),
        2 => (lease(), 0..5usize).prop_map(|(lease, index)| Operation::Keep { lease, index }),
        1 => (lease(), 0..5usize, prompt())
            .prop_map(|(lease, index, key)| Operation::KeepOdd { lease, index, key }),
        5 => lease().prop_map(|lease| Operation::Release { lease }),
        1 => Just(Operation::Expire),
        2 => (1..RETENTION_MS / 2).prop_map(|ms| Operation::Wait { ms }),
    ]
}

/// One part, or several of a layer or two each; the sessions' layers are up to three.
fn parts() -> impl Strategy<Value = Vec<PoolPart>> {
    let part = |layers, most: usize| {
        (layers, 0..most).prop_map(|(layers, blocks)| PoolPart { layers, blocks })
    };
    prop_oneof![
        prop::collection::vec(part(1..3usize, 32), 1),
        prop::collection::vec(part(1..3usize, 16), 2..4),
    ]
}

#[derive(Debug)]
struct ModelColumn {
    blocks: Vec<BlockId>,
    index: usize,
    key: Option<Key>,
    last_used_ms: u64,
}

#[derive(Debug)]
struct ModelLease {
    id: LeaseId,
    layers: usize,
    prompt: Key,
    promised: usize,
    /// Its columns' first blocks, by which a column of the model is known.
    columns: Vec<BlockId>,
    released: bool,
}

struct Model {
    parts: Vec<PoolPart>,
    retention_ms: u64,
    now_ms: u64,
    columns: Vec<ModelColumn>,
    leases: Vec<ModelLease>,
}

impl Model {
    fn is_held(&self, column: &ModelColumn) -> bool {
        let holds = |lease: &ModelLease| lease.columns.contains(&column.blocks[0]);
        self.leases.iter().any(holds)
    }

    fn held(&self) -> usize {
        let held = self.columns.iter().filter(|column| self.is_held(column));
        held.map(|column| column.blocks.len()).sum()
    }

    fn promised(&self) -> usize {
        let live = self.leases.iter().filter(|lease| !lease.released);
        live.map(|lease| lease.layers * lease.promised).sum()
    }

    fn owned(&self) -> Vec<BlockId> {
        let columns = self.columns.iter();
        columns.flat_map(|column| column.blocks.clone()).collect()
    }

    fn free(&self) -> Vec<BlockId> {
        let owned = self.owned();
        let all = (0..u32::try_from(self.total()).unwrap()).map(BlockId);
        all.filter(|block| !owned.contains(block)).collect()
    }

    fn total(&self) -> usize {
        self.parts.iter().map(|part| part.blocks).sum()
    }

    /// The part of a layer; 0 is the model's last one.
    fn part_of_layer(&self, from_last: usize) -> usize {
        let mut seen = 0;
        for index in (1..self.parts.len()).rev() {
            seen += self.parts[index].layers;
            if from_last < seen {
                return index;
            }
        }
        0
    }

    fn part_of_block(&self, block: BlockId) -> usize {
        let mut end = 0;
        let ends = self.parts.iter().map(|part| {
            end += part.blocks;
            end
        });
        ends.into_iter()
            .position(|end| (block.0 as usize) < end)
            .unwrap()
    }

    /// Of so many of the last layers, those of a part.
    fn layers_in(&self, part: usize, layers: usize) -> usize {
        let layers = (0..layers).map(|from_last| self.part_of_layer(from_last));
        layers.filter(|it| *it == part).count()
    }

    /// Of some blocks, those of a part.
    fn blocks_in(&self, part: usize, blocks: &[BlockId]) -> usize {
        let blocks = blocks.iter().map(|block| self.part_of_block(*block));
        blocks.filter(|it| *it == part).count()
    }

    /// Blocks of the part that are held, and promised.
    fn taken(&self, part: usize) -> usize {
        let held = self.columns.iter().filter(|column| self.is_held(column));
        let held: usize = held.map(|it| self.blocks_in(part, &it.blocks)).sum();
        let live = self.leases.iter().filter(|lease| !lease.released);
        let promised = live.map(|lease| self.layers_in(part, lease.layers) * lease.promised);
        held + promised.sum::<usize>()
    }

    fn has_free(&self, layers: usize) -> bool {
        let free = self.free();
        (0..self.parts.len())
            .all(|part| self.blocks_in(part, &free) >= self.layers_in(part, layers))
    }

    fn counts(&self) -> Counts {
        Counts {
            total: self.total(),
            held: self.held(),
            promised: self.promised(),
            kept: self.owned().len() - self.held(),
            free: self.free().len(),
        }
    }

    fn expire(&mut self) {
        let is_overdue = |column: &&ModelColumn| {
            !self.is_held(column) && self.now_ms - column.last_used_ms >= self.retention_ms
        };
        let overdue = self.columns.iter().filter(is_overdue);
        let overdue: Vec<BlockId> = overdue.map(|column| column.blocks[0]).collect();
        self.columns
            .retain(|column| !overdue.contains(&column.blocks[0]));
    }

    /// The columns that a session would reuse, by their places in `columns`.
    fn known(&self, layers: usize, offered: &[Key]) -> Vec<usize> {
        let place = |(index, key): (usize, &Key)| {
            self.columns.iter().position(|column| {
                column.key.as_ref() == Some(key)
                    && column.index == index
                    && column.blocks.len() == layers
            })
        };
        offered.iter().enumerate().map_while(place).collect()
    }

    /// The blocks that are reused, or the refusal.
    fn reserve(
        &mut self,
        layers: usize,
        columns: usize,
        offered: &[Key],
    ) -> Result<(usize, Vec<Vec<BlockId>>), Shortage> {
        for (index, part) in self.parts.iter().enumerate() {
            let needed_blocks = self.layers_in(index, layers) * columns;
            if needed_blocks > part.blocks {
                return Err(Shortage::NeverFits {
                    needed_blocks,
                    total_blocks: part.blocks,
                });
            }
        }
        self.expire();
        let columns = if layers == 0 { 0 } else { columns };
        let known = self.known(layers, &offered[..offered.len().min(columns)]);
        let fresh = columns - known.len();
        let unheld = known
            .iter()
            .filter(|place| !self.is_held(&self.columns[**place]));
        let needed_columns = fresh + unheld.count();
        for (index, part) in self.parts.iter().enumerate() {
            let needed_blocks = self.layers_in(index, layers) * needed_columns;
            let free_blocks = part.blocks - self.taken(index);
            if needed_blocks > free_blocks {
                return Err(Shortage::Full {
                    needed_blocks,
                    free_blocks,
                    total_blocks: part.blocks,
                });
            }
        }
        let reused = known
            .iter()
            .map(|place| self.columns[*place].blocks.clone());
        Ok((columns - known.len(), reused.collect()))
    }

    fn take(&mut self, lease: usize) -> Option<Vec<BlockId>> {
        let ModelLease {
            layers, promised, ..
        } = self.leases[lease];
        if promised == 0 {
            return None;
        }
        while !self.has_free(layers) {
            let places = 0..self.columns.len();
            let evicted = places
                .filter(|place| !self.is_held(&self.columns[*place]))
                .min_by_key(|place| {
                    let column = &self.columns[*place];
                    (column.last_used_ms, Reverse(column.index), *place)
                });
            self.columns.remove(evicted.expect("promises are covered"));
        }
        // The lowest free ones of each layer's part.
        let mut free = self.free();
        let layer_parts = (0..layers).rev().map(|layer| self.part_of_layer(layer));
        let blocks: Vec<BlockId> = layer_parts
            .map(|part| {
                let place = free.iter().position(|it| self.part_of_block(*it) == part);
                free.remove(place.expect("there is room"))
            })
            .collect();
        let taker = &mut self.leases[lease];
        taker.promised -= 1;
        self.columns.push(ModelColumn {
            blocks: blocks.clone(),
            index: taker.columns.len(),
            key: None,
            last_used_ms: self.now_ms,
        });
        taker.columns.push(blocks[0]);
        Some(blocks)
    }

    fn keep(&mut self, lease: usize, index: usize, key: Key) {
        self.expire();
        let is_known = self.columns.iter().any(|it| it.key.as_ref() == Some(&key));
        if self.retention_ms == 0 || is_known {
            return;
        }
        let Some(first) = self.leases[lease].columns.get(index) else {
            return;
        };
        let column = self.columns.iter_mut().find(|it| it.blocks[0] == *first);
        column.unwrap().key.get_or_insert(key);
    }

    fn release(&mut self, lease: usize) {
        let lease = &mut self.leases[lease];
        lease.released = true;
        lease.promised = 0;
        let let_go = std::mem::take(&mut lease.columns);
        for column in &mut self.columns {
            if let_go.contains(&column.blocks[0]) {
                column.last_used_ms = self.now_ms;
            }
        }
        let unneeded = |it: &&ModelColumn| it.key.is_none() && !self.is_held(it);
        let unneeded = self.columns.iter().filter(unneeded);
        let unneeded: Vec<BlockId> = unneeded.map(|it| it.blocks[0]).collect();
        self.columns.retain(|it| !unneeded.contains(&it.blocks[0]));
    }
}

/// The pool and its model side by side.
struct Pair {
    pool: KvPool<Key>,
    model: Model,
    start: Instant,
}

impl Pair {
    fn new(parts: Vec<PoolPart>, retention_ms: u64) -> Self {
        Self {
            pool: KvPool::new(&parts, Duration::from_millis(retention_ms)),
            model: Model {
                parts,
                retention_ms,
                now_ms: 0,
                columns: Vec::new(),
                leases: Vec::new(),
            },
            start: Instant::now(),
        }
    }

    fn now(&self) -> Instant {
        self.start + Duration::from_millis(self.model.now_ms)
    }

    /// The chosen lease's place in the model: mostly a live one, of a few choices any.
    fn lease(&self, chosen: usize) -> Option<usize> {
        let leases = self.model.leases.iter().enumerate();
        let live = leases.filter(|(_, lease)| !lease.released);
        let live: Vec<usize> = live.map(|(place, _)| place).collect();
        match live.len() {
            0 => self.model.leases.len().checked_sub(1),
            count if chosen < LIVE_CHOICES => Some(live[chosen % count]),
            _ => Some(chosen % self.model.leases.len()),
        }
    }

    fn apply(&mut self, operation: Operation) {
        let now = self.now();
        match operation {
            Operation::Reserve {
                layers,
                prompt,
                more_columns,
                offered,
            } => {
                let offered = offered.min(prompt.len());
                let offered: Vec<Key> = (1..=offered).map(|end| prompt[..end].to_vec()).collect();
                let columns = prompt.len() + more_columns;
                self.reserve(layers, columns, &offered, prompt);
            }
            Operation::ReserveOdd {
                layers,
                columns,
                offered,
            } => self.reserve(layers, columns, &offered, Vec::new()),
            Operation::Take { lease } => {
                if let Some(lease) = self.lease(lease) {
                    self.take(lease);
                }
            }
            Operation::TakeAndKeepAll { lease } => {
                if let Some(lease) = self.lease(lease) {
                    for _ in 0..=self.model.leases[lease].promised {
                        self.take(lease);
                    }
                    for index in 0..self.model.leases[lease].prompt.len() {
                        self.keep_prompt(lease, index);
                    }
                }
            }
            Operation::Keep { lease, index } => {
                if let Some(lease) = self.lease(lease) {
                    self.keep_prompt(lease, index);
                }
            }
            Operation::KeepOdd { lease, index, key } => {
                if let Some(lease) = self.lease(lease) {
                    self.keep(lease, index, key);
                }
            }
            Operation::Release { lease } => {
                if let Some(lease) = self.lease(lease) {
                    self.pool.release(self.model.leases[lease].id, now);
                    self.model.release(lease);
                }
            }
            Operation::Expire => {
                self.pool.expire(now);
                self.model.expire();
            }
            Operation::Wait { ms } => self.model.now_ms += ms,
        }
        self.check();
    }

    fn reserve(&mut self, layers: usize, columns: usize, offered: &[Key], prompt: Key) {
        let now = self.now();
        let granted = self.pool.reserve(layers, columns, offered, now);
        let expected = self.model.reserve(layers, columns, offered);
        match (granted, expected) {
            (Ok(grant), Ok((promised, reused))) => {
                assert_eq!(grant.reused, reused);
                self.model.leases.push(ModelLease {
                    id: grant.lease,
                    layers,
                    prompt,
                    promised,
                    columns: reused.iter().map(|blocks| blocks[0]).collect(),
                    released: false,
                });
            }
            (granted, expected) => assert_eq!(granted.err(), expected.err()),
        }
    }

    fn take(&mut self, lease: usize) {
        let taken = self.pool.take_column(self.model.leases[lease].id);
        assert_eq!(taken, self.model.take(lease));
    }

    fn keep_prompt(&mut self, lease: usize, index: usize) {
        if let Some(key) = self.model.leases[lease].prompt.get(..=index) {
            let key = key.to_vec();
            self.keep(lease, index, key);
        }
    }

    fn keep(&mut self, lease: usize, index: usize, key: Key) {
        let now = self.now();
        let id = self.model.leases[lease].id;
        self.pool.keep(id, index, key.clone(), now);
        self.model.keep(lease, index, key);
    }

    /// The invariants, of the pool itself and against the model.
    fn check(&self) {
        let counts = self.pool.counts();
        assert_eq!(counts, self.model.counts());
        assert_eq!(counts.held + counts.kept + counts.free, counts.total);
        for (index, part) in self.model.parts.iter().enumerate() {
            assert!(self.model.taken(index) <= part.blocks);
        }

        let columns = self.pool.columns.values();
        let owned: Vec<BlockId> = columns.flat_map(|it| it.blocks.clone()).collect();
        let distinct: BTreeSet<BlockId> = owned.iter().copied().collect();
        assert_eq!(distinct.len(), owned.len(), "a block is in two columns");
        assert_eq!(distinct, self.model.owned().into_iter().collect());
        for column in self.pool.columns.values() {
            let parts = column.blocks.iter().map(|it| self.model.part_of_block(*it));
            let layers = (0..column.blocks.len()).rev();
            assert!(parts.eq(layers.map(|layer| self.model.part_of_layer(layer))));
        }
        assert!(self.pool.keys.len() <= self.pool.columns.len());
        let unheld = |it: &&Column<Key>| it.holders == 0;
        let unheld = self.pool.columns.values().filter(unheld).count();
        assert_eq!(self.pool.unheld.len(), unheld);
    }

    /// Every promise is kept, even if all are called in at once; afterwards everything can be given back.
    fn finish(mut self) {
        for lease in 0..self.model.leases.len() {
            for _ in 0..self.model.leases[lease].promised {
                let taken = self.pool.take_column(self.model.leases[lease].id);
                assert!(taken.is_some(), "a promise was not kept");
                assert_eq!(taken, self.model.take(lease));
                self.check();
            }
            self.take(lease);
        }
        let now = self.now();
        for lease in 0..self.model.leases.len() {
            self.pool.release(self.model.leases[lease].id, now);
            self.model.release(lease);
            self.check();
        }
        self.model.now_ms += self.model.retention_ms;
        self.pool.expire(self.now());
        self.model.expire();
        self.check();
        assert_eq!(self.pool.counts().free, self.model.total());
        assert!(self.pool.keys.is_empty() && self.pool.leases.is_empty());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn the_pool_does_what_a_search_through_all_columns_says(
        parts in parts(),
        retention_ms in prop_oneof![9 => Just(RETENTION_MS), 1 => Just(0)],
        operations in prop::collection::vec(operation(), 0..120),
    ) {
        let mut pair = Pair::new(parts, retention_ms);
        for operation in operations {
            pair.apply(operation);
        }
        pair.finish();
    }
}
