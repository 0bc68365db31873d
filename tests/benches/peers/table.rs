//! Samples of one row, and their Markdown: the median with the range behind it.
//!
//! Touches nothing.

/// What one server did in one case, a column for each figure.
pub(crate) struct Row {
    pub(crate) case: String,
    pub(crate) server: String,
    samples: Vec<Vec<f64>>,
}

/// The rows of one table, in the order of their first sample.
pub(crate) struct Table {
    pub(crate) title: &'static str,
    columns: &'static [Column],
    rows: Vec<Row>,
}

/// A figure's heading, and how many digits behind the point say something.
#[derive(Clone, Copy)]
pub(crate) struct Column(pub(crate) &'static str, pub(crate) usize);

impl Table {
    pub(crate) fn new(title: &'static str, columns: &'static [Column]) -> Self {
        Self {
            title,
            columns,
            rows: Vec::new(),
        }
    }

    /// Adds one round's figures; `NaN` says that this server has no such figure.
    pub(crate) fn add(&mut self, case: &str, server: &str, figures: &[f64]) {
        let found = self
            .rows
            .iter()
            .position(|row| row.case == case && row.server == server);
        let at = found.unwrap_or_else(|| {
            let samples = vec![Vec::new(); self.columns.len()];
            self.rows.push(Row {
                case: case.to_owned(),
                server: server.to_owned(),
                samples,
            });
            self.rows.len() - 1
        });
        for (samples, figure) in self.rows[at].samples.iter_mut().zip(figures) {
            if !figure.is_nan() {
                samples.push(*figure);
            }
        }
        let line: Vec<String> = self.columns.iter().zip(figures).map(said).collect();
        eprintln!("  {case} · {server}: {}", line.join(", "));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    pub(crate) fn markdown(&self) -> String {
        let headings: Vec<&str> = self.columns.iter().map(|column| column.0).collect();
        let mut text = format!(
            "**{}**\n\n| case | server | {} |\n",
            self.title,
            headings.join(" | ")
        );
        text += &format!("|---|---|{}\n", "---:|".repeat(self.columns.len()));
        let mut last = "";
        for row in &self.rows {
            let case = if row.case == last { "" } else { &row.case };
            last = &row.case;
            let pairs = self.columns.iter().zip(&row.samples);
            let cells: Vec<String> = pairs
                .map(|(column, samples)| cell(*column, samples))
                .collect();
            text += &format!("| {case} | {} | {} |\n", row.server, cells.join(" | "));
        }
        text
    }
}

fn said((column, figure): (&Column, &f64)) -> String {
    format!("{} {}", column.0, number(*figure, column.1))
}

fn cell(column: Column, samples: &[f64]) -> String {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (Some(least), Some(most)) = (sorted.first(), sorted.last()) else {
        return "–".to_owned();
    };
    let median = number(sorted[sorted.len() / 2], column.1);
    if sorted.len() == 1 {
        return median;
    }
    format!(
        "{median} ({}–{})",
        number(*least, column.1),
        number(*most, column.1)
    )
}

/// Digits in groups of three, so that thousands read as thousands.
fn number(figure: f64, decimals: usize) -> String {
    let plain = format!("{figure:.decimals$}");
    let (whole, rest) = plain.split_at(plain.find('.').unwrap_or(plain.len()));
    let mut grouped = String::new();
    for (at, digit) in whole.chars().enumerate() {
        if at > 0 && digit.is_ascii_digit() && (whole.len() - at) % 3 == 0 {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped + rest
}
