//! A space-filling curve: frames that are close in memory are close in the picture.

/// Cells of a `width` x `height` rectangle in the order of a generalized Hilbert curve. Every cell
/// occurs once, next to the previous one (diagonally at most once, if a side is odd).
///
/// Algorithm: J. Červený, "Generalized Hilbert curve for rectangular domains" (2019). A rectangle
/// with sides `a` (along the walk) and `b` is split into two if it is long, and else into three
/// that the curve enters and leaves at adjacent corners.
pub(super) fn cells(width: i32, height: i32) -> Vec<(i32, i32)> {
    let area = usize::try_from(i64::from(width.max(0)) * i64::from(height.max(0)));
    let mut out = Vec::with_capacity(area.unwrap_or(0));
    if width > 0 && height > 0 {
        if width >= height {
            walk((0, 0), (width, 0), (0, height), &mut out);
        } else {
            walk((0, 0), (0, height), (width, 0), &mut out);
        }
    }
    out
}

type Vector = (i32, i32);

fn walk(at: Vector, a: Vector, b: Vector, out: &mut Vec<(i32, i32)>) {
    let (along, across) = (unit(a), unit(b));
    let (length, breadth) = (size(a), size(b));
    if breadth == 1 {
        out.extend((0..length).map(|i| add(at, times(along, i))));
        return;
    }
    if length == 1 {
        out.extend((0..breadth).map(|i| add(at, times(across, i))));
        return;
    }
    let (mut half_a, mut half_b) = (half(a), half(b));
    if 2 * length > 3 * breadth {
        if size(half_a) % 2 != 0 && length > 2 {
            half_a = add(half_a, along);
        }
        walk(at, half_a, b, out);
        walk(add(at, half_a), sub(a, half_a), b, out);
        return;
    }
    if size(half_b) % 2 != 0 && breadth > 2 {
        half_b = add(half_b, across);
    }
    walk(at, half_b, half_a, out);
    walk(add(at, half_b), a, sub(b, half_b), out);
    let last = add(add(at, sub(a, along)), sub(half_b, across));
    walk(last, times(half_b, -1), times(sub(a, half_a), -1), out);
}

/// Number of cells along an axis-parallel vector.
fn size(v: Vector) -> i32 {
    (v.0 + v.1).abs()
}

fn unit(v: Vector) -> Vector {
    (v.0.signum(), v.1.signum())
}

/// Half of a vector, rounded down (towards negative infinity, as the published curve does).
fn half(v: Vector) -> Vector {
    (v.0.div_euclid(2), v.1.div_euclid(2))
}

fn add(u: Vector, v: Vector) -> Vector {
    (u.0 + v.0, u.1 + v.1)
}

fn sub(u: Vector, v: Vector) -> Vector {
    (u.0 - v.0, u.1 - v.1)
}

fn times(v: Vector, factor: i32) -> Vector {
    (v.0 * factor, v.1 * factor)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_cell_once_and_no_jumps() {
        for width in 1..40 {
            for height in 1..40 {
                let cells = cells(width, height);
                let inside =
                    |c: &(i32, i32)| (0..width).contains(&c.0) && (0..height).contains(&c.1);
                assert!(cells.iter().all(inside), "{width} x {height}");
                let distinct: HashSet<_> = cells.iter().copied().collect();
                assert_eq!(distinct.len(), usize::try_from(width * height).unwrap());
                assert_eq!(distinct.len(), cells.len());
                let mut diagonal = 0;
                for pair in cells.windows(2) {
                    let step = sub(pair[1], pair[0]);
                    assert!(step.0.abs() <= 1 && step.1.abs() <= 1, "{width} x {height}: {pair:?}");
                    diagonal += i32::from(step.0 != 0 && step.1 != 0);
                }
                let most = i32::from(width % 2 != 0 || height % 2 != 0);
                assert!(diagonal <= most, "{width} x {height}: {diagonal} diagonal steps");
            }
        }
        assert!(cells(0, 5).is_empty());
    }
}
