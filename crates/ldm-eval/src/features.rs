//! Rows of features, one per picture.

/// Features of pictures, `[N, D]`, in the pictures' order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Features {
    dim: usize,
    values: Vec<f32>,
}

impl Features {
    /// No rows yet, of `dim` features each.
    ///
    /// # Panics
    /// If `dim` is 0.
    pub fn new(dim: usize) -> Self {
        Self::from_values(dim, Vec::new())
    }

    /// Rows that lie one after the other.
    ///
    /// # Panics
    /// If `dim` is 0, or the values fill no whole number of rows.
    pub fn from_values(dim: usize, values: Vec<f32>) -> Self {
        assert!(dim > 0, "a picture has features");
        assert_eq!(values.len() % dim, 0, "whole rows of {dim}");
        Self { dim, values }
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.values.len() / self.dim.max(1)
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// Features of a row.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// All rows, one after the other.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// One row.
    ///
    /// # Panics
    /// If there are fewer rows.
    pub fn row(&self, index: usize) -> &[f32] {
        &self.values[index * self.dim..][..self.dim]
    }

    /// Appends rows.
    ///
    /// # Panics
    /// If the values fill no whole number of rows.
    pub fn push(&mut self, rows: &[f32]) {
        assert_eq!(rows.len() % self.dim, 0, "whole rows of {}", self.dim);
        self.values.extend_from_slice(rows);
    }
}
