//! Nearest-neighbour graphs over items or users, built once, with memory bounded by a tile of
//! similarities: the matrix of all pairs never exists. Time grows with the square of the nodes
//! (a hundred thousand vectors of 256 columns take minutes on one core).

use candle_core::{Device, Tensor};
use rayon::prelude::*;

use crate::data::Csr;
use crate::error::Result;
use crate::graph::SparseMatrix;

/// Rows and columns of similarities that exist at one time.
const ROWS: usize = 1024;
const COLUMNS: usize = 4096;

/// A list of at most `k` (similarity, node), best first, ties to the lower node.
#[derive(Debug, Clone)]
struct Best {
    k: usize,
    list: Vec<(f32, u32)>,
}

impl Best {
    fn new(k: usize) -> Self {
        Self {
            k,
            list: Vec::with_capacity(k + 1),
        }
    }

    /// Nodes must be offered in ascending order.
    fn offer(&mut self, similarity: f32, node: u32) {
        let full = self.list.len() == self.k;
        if self.k == 0 || (full && similarity <= self.list[self.k - 1].0) {
            return;
        }
        let at = self.list.partition_point(|&(s, _)| s >= similarity);
        self.list.insert(at, (similarity, node));
        self.list.truncate(self.k);
    }
}

/// The `k` nodes of largest cosine of each node, without the node itself, best first, ties to the
/// lower node. A node whose vector is zero has no neighbours and is nobody's.
///
/// # Shapes
/// `vectors` is `[N, D]`, rows of unit length or zero.
pub fn cosine_neighbors(vectors: &Tensor, k: usize) -> Result<Vec<Vec<u32>>> {
    let vectors = vectors.to_device(&Device::Cpu)?.contiguous()?;
    let n = vectors.dim(0)?;
    let real: Vec<bool> = vectors
        .sqr()?
        .sum(1)?
        .to_vec1::<f32>()?
        .iter()
        .map(|s| *s > 0.0)
        .collect();
    let mut out = Vec::with_capacity(n);
    for start in (0..n).step_by(ROWS) {
        let rows = ROWS.min(n - start);
        let block = vectors.narrow(0, start, rows)?;
        let mut best = vec![Best::new(k); rows];
        for first in (0..n).step_by(COLUMNS) {
            let columns = COLUMNS.min(n - first);
            let tile = block.matmul(&vectors.narrow(0, first, columns)?.t()?)?;
            let tile = tile.flatten_all()?.to_vec1::<f32>()?;
            best.par_iter_mut()
                .zip(tile.par_chunks(columns))
                .enumerate()
                .filter(|(r, _)| real[start + r])
                .for_each(|(r, (best, row))| {
                    for (c, &s) in row.iter().enumerate() {
                        if real[first + c] && first + c != start + r {
                            best.offer(s, (first + c) as u32);
                        }
                    }
                });
        }
        out.extend(
            best.into_iter()
                .map(|b| b.list.into_iter().map(|e| e.1).collect::<Vec<_>>()),
        );
    }
    Ok(out)
}

/// The `k` rows of largest Jaccard index `|A ∩ B| / |A ∪ B|` of each row, only rows that share a
/// column, best first, ties to the lower row. Memory per thread: one counter a row.
pub fn jaccard_neighbors(rows: &Csr, columns: usize, k: usize) -> Vec<Vec<u32>> {
    let by_column = rows.transpose(columns);
    let n = rows.rows();
    (0..n as u32)
        .into_par_iter()
        .map_init(
            || (vec![0u32; n], Vec::new()),
            |(shared, touched): &mut (Vec<u32>, Vec<u32>), r| {
                for &c in rows.row(r) {
                    for &other in by_column.row(c) {
                        if shared[other as usize] == 0 {
                            touched.push(other);
                        }
                        shared[other as usize] += 1;
                    }
                }
                touched.sort_unstable();
                let own = rows.row(r).len();
                let mut best = Best::new(k);
                for other in touched.drain(..) {
                    let both = std::mem::take(&mut shared[other as usize]) as usize;
                    if other != r {
                        let either = own + rows.row(other).len() - both;
                        best.offer(both as f32 / either as f32, other);
                    }
                }
                best.list.into_iter().map(|e| e.1).collect()
            },
        )
        .collect()
}

/// `D^(-1/2) A D^(-1/2)` of the union of the directed neighbour lists: A is 1 where either node
/// names the other. Nodes without neighbours have empty rows.
///
/// # Errors
/// A neighbour outside the nodes.
pub fn symmetric_graph(neighbors: &[Vec<u32>]) -> Result<SparseMatrix> {
    let n = neighbors.len();
    let mut pairs: Vec<(u32, u32)> = neighbors
        .iter()
        .enumerate()
        .flat_map(|(a, list)| {
            let a = a as u32;
            list.iter().flat_map(move |&b| [(a, b), (b, a)])
        })
        .collect();
    pairs.sort_unstable();
    pairs.dedup();
    let mut degree = vec![0u32; n];
    for &(a, _) in &pairs {
        degree[a as usize] += 1;
    }
    let of = |v: u32| f64::from(degree.get(v as usize).copied().unwrap_or(1));
    let entries: Vec<(u32, u32, f32)> = pairs
        .iter()
        .map(|&(a, b)| (a, b, (1.0 / (of(a) * of(b)).sqrt()) as f32))
        .collect();
    SparseMatrix::from_entries(n, n, &entries)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{self, Purpose};

    /// Oracle D7 of the DPRec specification.
    #[test]
    fn item_graph_matches_oracle() -> Result<()> {
        let f = Tensor::new(&[[1f32, 0.], [0.8, 0.6], [0., 1.]], &Device::Cpu)?;
        let neighbors = cosine_neighbors(&f, 1)?;
        assert_eq!(neighbors, [[1], [0], [1]]);
        let s = symmetric_graph(&neighbors)?;
        let y = [1f32, 0., 0., 1., 2., 2.];
        let got = s.matmul_slice(&y, 2);
        let h = 0.5f32.sqrt();
        let want = [0.0, h, 3.0 * h, 2.0 * h, 0.0, h];
        for (g, w) in got.iter().zip(want) {
            assert!((g - w).abs() < 1e-5, "{got:?}");
        }
        let residual: Vec<f32> = got.iter().zip(y).map(|(g, y)| g + y).collect();
        let want = [1.0, h, 3.0 * h, 1.0 + 2.0 * h, 2.0, 2.0 + h];
        for (g, w) in residual.iter().zip(want) {
            assert!((g - w).abs() < 1e-5, "{residual:?}");
        }
        Ok(())
    }

    #[test]
    fn tiles_do_not_change_the_neighbours() -> Result<()> {
        // More nodes than one tile has columns; compared with a plain search for some of them.
        let (n, d) = (COLUMNS + 300, 3);
        let mut r = rng::stream(1, Purpose::Init, &[]);
        let x = crate::ops::normalize_rows(&rng::normal(&mut r, (n, d), 1.0, &Device::Cpu)?)?;
        let got = cosine_neighbors(&x, 4)?;
        let rows = x.to_vec2::<f32>()?;
        for a in [0, ROWS - 1, ROWS, COLUMNS, n - 1] {
            let mut all: Vec<(f32, usize)> = (0..n)
                .filter(|&b| b != a)
                .map(|b| (rows[a].iter().zip(&rows[b]).map(|(x, y)| x * y).sum(), b))
                .collect();
            all.sort_by(|x, y| y.0.total_cmp(&x.0).then(x.1.cmp(&y.1)));
            // Rounding may swap what is equal to the sixth digit: compare similarities.
            for (k, &b) in got[a].iter().enumerate() {
                let s: f32 = rows[a]
                    .iter()
                    .zip(&rows[b as usize])
                    .map(|(x, y)| x * y)
                    .sum();
                assert!((s - all[k].0).abs() < 1e-5);
            }
        }
        Ok(())
    }

    #[test]
    fn zero_vectors_stay_alone_and_ties_go_to_the_lower_node() -> Result<()> {
        let f = Tensor::new(&[[1f32, 0.], [0., 0.], [1., 0.], [1., 0.]], &Device::Cpu)?;
        let neighbors = cosine_neighbors(&f, 2)?;
        assert_eq!(neighbors[0], [2, 3]);
        assert!(neighbors[1].is_empty());
        assert_eq!(neighbors[3], [0, 2]);
        assert_eq!(symmetric_graph(&neighbors)?.row(1).0.len(), 0);
        assert!(cosine_neighbors(&f, 0)?.iter().all(Vec::is_empty));
        Ok(())
    }

    #[test]
    fn jaccard_by_hand() {
        let rows = Csr::from_rows([vec![0, 1, 2], vec![1, 2], vec![2, 3, 4, 5], vec![], vec![0]]);
        let got = jaccard_neighbors(&rows, 6, 2);
        // Row 0: with row 1 2/3, with row 4 1/3, with row 2 1/6.
        assert_eq!(got[0], [1, 4]);
        assert_eq!(got[1], [0, 2]);
        assert!(got[3].is_empty());
        assert_eq!(got[4], [0]);
    }
}
