//! Handwritten digits, 8 × 8 grey pixels (`data/README.md` says whose; CC BY 4.0), and any other set of small grey images in the same form: comma-separated
//! lines, one image each, row by row, the label last; gzip or plain.

use super::Dataset;
use std::io::Read;
use std::path::Path;

/// The set that the project ships, part of the binary.
static SHIPPED: &[u8] = include_bytes!("../../../data/digits.csv.gz");

/// The shipped digits, 1,797 samples `[1, 8, 8]`, normalised over all pixels.
///
/// # Errors
/// None, unless the shipped file was changed.
pub fn shipped() -> Result<Dataset, String> {
    read("digits", SHIPPED, 8, 8, 16.0)
}

/// A set in a file: images of `height × width` with values from 0 to `white`.
///
/// # Errors
/// A file that cannot be read; the line and the column of a value that is no number, not finite or out of range, of a line with another number of columns.
pub fn from_file(path: &Path, height: usize, width: usize, white: f64) -> Result<Dataset, String> {
    let bytes = std::fs::read(path).map_err(|e| format!("data: cannot read {}: {e}", path.display()))?;
    read(&path.display().to_string(), &bytes, height, width, white)
}

/// See [`from_file`]; `name` is for messages.
///
/// # Errors
/// Those of [`from_file`].
pub fn read(name: &str, bytes: &[u8], height: usize, width: usize, white: f64) -> Result<Dataset, String> {
    let mut text = vec![];
    if bytes.starts_with(&[0x1f, 0x8b]) {
        flate2::read::GzDecoder::new(bytes).read_to_end(&mut text).map_err(|e| format!("data: {name} is a damaged gzip file: {e}"))?;
    } else {
        text.extend_from_slice(bytes);
    }
    let columns = height * width + 1;
    let (mut samples, mut labels) = (vec![], vec![]);
    let mut lines = csv::ReaderBuilder::new().has_headers(false).flexible(true).trim(csv::Trim::All).from_reader(text.as_slice());
    for record in lines.records() {
        let record = record.map_err(|e| format!("data: {name}: {e}"))?;
        let line = record.position().map_or(0, csv::Position::line);
        if record.len() != columns {
            return Err(format!("data: {name}: line {line} has {} columns, but an image of {height} x {width} with its label has {columns}", record.len()));
        }
        for (i, field) in record.iter().enumerate() {
            let at = || format!("data: {name}: line {line}, column {}", i + 1);
            let x: f64 = field.parse().map_err(|_| format!("{}: `{field}` is no number", at()))?;
            if !x.is_finite() {
                return Err(format!("{}: {x} is not finite", at()));
            }
            if i + 1 < columns {
                if !(0.0..=white).contains(&x) {
                    return Err(format!("{}: {x} is outside of 0 to {white}", at()));
                }
                samples.push(x as f32);
            } else if x < 0.0 || x.fract() != 0.0 || x > 1e6 {
                return Err(format!("{}: {x} is no class", at()));
            } else {
                labels.push(x as u32);
            }
        }
    }
    if labels.is_empty() {
        return Err(format!("data: {name} has no line"));
    }
    let classes = labels.iter().max().map_or(0, |m| *m as usize + 1);
    let mut d = Dataset { name: name.into(), shape: vec![1, height, width], samples, labels, classes, conditions: Default::default(), scale: (0.0, 1.0), range: (0.0, white) };
    d.check()?;
    d.normalise()?;
    Ok(d)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_set_is_whole() {
        let d = shipped().unwrap();
        assert_eq!((d.len(), d.classes, d.size()), (1797, 10, 64));
        let mut count = [0; 10];
        d.labels.iter().for_each(|l| count[*l as usize] += 1);
        assert_eq!(count, [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]);
        // The mean and deviation of all pixels, in the file's units.
        assert!((d.scale.0 - 4.884_164_579_855_314).abs() < 1e-6 && (d.scale.1 - 6.016_787_548_672_236).abs() < 1e-6, "{:?}", d.scale);
        assert_eq!(d.grey(d.sample(0))[2..6], [80, 207, 143, 16]);
    }

    #[test]
    fn bad_files_are_refused_with_line_and_column() {
        let refused = |text: &str| read("x.csv", text.as_bytes(), 1, 2, 16.0).unwrap_err();
        assert_eq!(refused("1,2,0\n1,2\n"), "data: x.csv: line 2 has 2 columns, but an image of 1 x 2 with its label has 3");
        assert_eq!(refused("1,NaN,0\n"), "data: x.csv: line 1, column 2: NaN is not finite");
        assert_eq!(refused("1,2,0\n3,17,1\n"), "data: x.csv: line 2, column 2: 17 is outside of 0 to 16");
        assert_eq!(refused("1,two,0\n"), "data: x.csv: line 1, column 2: `two` is no number");
        assert_eq!(refused("1,2,0.5\n"), "data: x.csv: line 1, column 3: 0.5 is no class");
        assert_eq!(refused(""), "data: x.csv has no line");
        assert!(read("x.gz", &[0x1f, 0x8b, 8, 0, 1, 2], 1, 2, 16.0).unwrap_err().contains("damaged gzip"));
    }
}
