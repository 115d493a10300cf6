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
        Input::HiddenStates(values) if values.len() != segment.rows * config.hidden_size => {
            Err(shape(values.len(), config.hidden_size))
        }
        Input::HiddenStates(_) => Ok(()),
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
    let is_outside = |block: &&BlockId| !(first..first + num_blocks).contains(&(block.0 as usize));
    match blocks_in(bounds.layers, segment).flatten().find(is_outside) {
        Some(&block) => Err(ForwardError::Block { block, num_blocks }),
        None => Ok(()),
    }
}
