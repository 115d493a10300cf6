//! What a step must not say.

use headway_model::{BlockId, ForwardError, ModelConfig};

use super::{Batch, Bounds, Input, Segment, blocks_in};
use crate::error::CudaError;

/// Refuses what would make a kernel read or write outside its memory.
pub(crate) fn check(
    config: &ModelConfig,
    bounds: &Bounds,
    batch: &Batch<'_>,
) -> Result<(), CudaError> {
    let rows = batch.rows();
    if rows > bounds.max_rows {
        let most = bounds.max_rows;
        return Err(CudaError::Rows { rows, most });
    }
    assert!(
        batch
            .segments
            .is_sorted_by_key(|segment| segment.entry_layer),
        "segments are ordered by entry layer"
    );
    for (segment, is_handed) in batch.handed() {
        if !is_handed {
            check_input(config, bounds, segment)?;
        }
        check_table(config, bounds, segment)?;
    }
    Ok(())
}

fn check_input(
    config: &ModelConfig,
    bounds: &Bounds,
    segment: &Segment<'_>,
) -> Result<(), ForwardError> {
    let shape = |found, columns| ForwardError::Shape {
        found,
        rows: segment.rows,
        columns,
    };
    match segment.input {
        Input::HiddenStates(values) | Input::TakenIn(values, _)
            if values.len() != segment.rows * config.hidden_size =>
        {
            Err(shape(values.len(), config.hidden_size))
        }
        Input::HiddenStates(_) | Input::TakenIn(..) => Ok(()),
        Input::TokenIds(_) if bounds.layers.start > 0 => Err(ForwardError::Layer {
            layer: 0,
            loaded: bounds.layers,
        }),
        Input::TokenIds(token_ids) if token_ids.len() != segment.rows => {
            Err(shape(token_ids.len(), 1))
        }
        Input::TokenIds(token_ids) => {
            let vocab_size = config.vocab_size;
            match token_ids.iter().find(|&&id| id as usize >= vocab_size) {
                Some(&token_id) => Err(ForwardError::TokenId {
                    token_id,
                    vocab_size,
                }),
                None => Ok(()),
            }
        }
    }
}

fn check_table(
    config: &ModelConfig,
    bounds: &Bounds,
    segment: &Segment<'_>,
) -> Result<(), ForwardError> {
    let Segment {
        entry_layer,
        rows,
        table,
        ..
    } = *segment;
    // A table's capacity is a number of whole blocks, past the model's last position.
    let capacity = table.capacity().min(config.max_positions);
    if table.len() + rows > capacity {
        return Err(ForwardError::CacheFull {
            len: table.len(),
            capacity,
            rows,
        });
    }
    for (layer, held) in [(entry_layer, bounds.layers), (entry_layer, table.layers())] {
        if layer < held.start || held.end < bounds.layers.end {
            return Err(ForwardError::Layer {
                layer,
                loaded: held,
            });
        }
    }
    let (first, num_blocks) = (bounds.first_block, bounds.kv_blocks);
    // The usual case, which is faster.
    if let Some(blocks) = segment.all_blocks(bounds.layers) {
        let numbers = || blocks.iter().map(|block| block.0 as usize);
        let [least, most] = [numbers().min(), numbers().max()];
        if least.is_none_or(|least| least >= first)
            && most.is_none_or(|most| most < first + num_blocks)
        {
            return Ok(());
        }
    }
    let is_outside = |block: &&BlockId| !(first..first + num_blocks).contains(&(block.0 as usize));
    match blocks_in(bounds.layers, segment).flatten().find(is_outside) {
        Some(&block) => Err(ForwardError::Block { block, num_blocks }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use headway_model::config::ModelConfig;
    use headway_model::{KvTable, LayerRange};

    use super::*;
    use crate::attention::Cut;

    /// Layers 2 and 3 of a model of six, with the blocks 10 to 19.
    const BOUNDS: Bounds = Bounds {
        max_rows: 8,
        first_block: 10,
        kv_blocks: 10,
        cut: Cut {
            item_positions: 32,
            row_items: 4,
            tile_rows: 4,
            prompt_rows: 0,
        },
        one_order: false,
        layers: LayerRange::new(2, 4),
    };

    fn config() -> ModelConfig {
        ModelConfig {
            num_layers: 6,
            ..crate::check::kernels::config(4, 2, 8)
        }
    }

    /// One column, of the blocks that are named for its layers.
    fn table(layers: [usize; 2], blocks: &[u32]) -> KvTable {
        let mut table = KvTable::new(LayerRange::new(layers[0], layers[1]));
        table.push_column(&blocks.iter().copied().map(BlockId).collect::<Vec<_>>());
        table
    }

    fn checked(table: &KvTable, entry_layer: usize, handed_rows: usize) -> Result<(), CudaError> {
        let segments = [Segment {
            entry_layer,
            rows: 3,
            input: Input::TokenIds(&[1, 2, 3]),
            table,
        }];
        let batch = Batch {
            handed_rows,
            ..Batch::new(&segments, &[])
        };
        check(&config(), &BOUNDS, &batch)
    }

    #[test]
    fn a_stage_looks_at_its_own_layers_blocks_alone() {
        let all = table([0, 6], &[0, 1, 10, 19, 20, 21]);
        assert!(checked(&all, 2, 3).is_ok());
        for outside in [9, 20] {
            let error = checked(&table([0, 6], &[0, 1, 10, outside, 20, 21]), 2, 3);
            let is_refused = matches!(
                error,
                Err(CudaError::Forward(ForwardError::Block { block, .. })) if block.0 == outside
            );
            assert!(is_refused, "{outside}");
        }
    }

    #[test]
    fn rows_that_are_handed_over_need_no_input_and_others_do() {
        let all = table([0, 6], &[0, 1, 10, 19, 20, 21]);
        // Token ids have no business behind the first layer.
        assert!(checked(&all, 2, 3).is_ok());
        assert!(checked(&all, 2, 0).is_err());
    }

    #[test]
    fn a_table_that_ends_before_the_stage_is_refused() {
        assert!(checked(&table([0, 4], &[0, 1, 10, 11]), 2, 3).is_ok());
        assert!(checked(&table([0, 3], &[0, 1, 10]), 2, 3).is_err());
        assert!(checked(&table([3, 6], &[10, 20, 21]), 2, 3).is_err());
    }
}
