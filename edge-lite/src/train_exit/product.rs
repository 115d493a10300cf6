//! Matrix products that can be trained through: in bfloat16 where the processor has a unit for it, else candle's.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};
use headway_model::bf16_product::{self, Matrix};

use super::values::values;

/// `left · right`, `[m, k]` and `[k, n]`; gradients reach both.
pub(super) fn product(left: &Tensor, right: &Tensor) -> Result<Tensor> {
    if bf16_product::is_available() {
        left.apply_op2(right, Product)
    } else {
        left.matmul(right)
    }
}

struct Product;

impl CustomOp2 for Product {
    fn name(&self) -> &'static str {
        "product in bfloat16"
    }

    fn cpu_fwd(
        &self,
        left: &CpuStorage,
        left_layout: &Layout,
        right: &CpuStorage,
        right_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (left, right) = (matrix(left, left_layout)?, matrix(right, right_layout)?);
        if left.columns != right.rows {
            candle_core::bail!("{left:?} times {right:?}");
        }
        let out = bf16_product::product(left, right);
        let shape = Shape::from((left.rows, right.columns));
        Ok((CpuStorage::F32(out), shape))
    }

    fn bwd(
        &self,
        left: &Tensor,
        right: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let of_left = product(gradient, &right.t()?.detach())?;
        let of_right = product(&left.t()?.detach(), gradient)?;
        Ok((Some(of_left), Some(of_right)))
    }
}

fn matrix<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<Matrix<'a>> {
    let (rows, columns) = layout.shape().dims2()?;
    let [row_stride, column_stride] = layout.stride() else {
        candle_core::bail!("{layout:?} is no matrix");
    };
    Ok(Matrix {
        values: &values(storage)?[layout.start_offset()..],
        rows,
        columns,
        row_stride: *row_stride,
        column_stride: *column_stride,
    })
}
