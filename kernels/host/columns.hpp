// columns.hpp - how functions on a matrix walk over it, with sums of the columns if they are wanted.
//   Short rows without gaps are joined: 51 rows of 10 columns are one piece of 510, whose element j is
//   of column j % 10. Longer rows are cut into pieces of PIECE columns.
//   A sum is made of chunks of rows: within one, 16 (joined) rows are added up, and these sums exactly.
//   So its error does not grow with the rows, and its order follows from the shape alone.
#pragma once
#include "host.hpp"

constexpr int SEQUENCE_ROWS = 16;

struct Columns {
    int64 cols, join, width;  // width: of a joined row

    // rows: of the matrix, or as many as are taken; not more are joined.
    Columns(int64 rows, int64 cols, bool gaps)
        : cols(cols), join(!gaps && cols > 0 && rows > 1 ? larger(smaller(PIECE / cols, rows), 1) : 1),
          width(join * cols) {}
    // Elements of the piece that begins in `row` at `column`; rows end before `last`.
    int64 length(int64 row, int64 column, int64 last) const {
        return join > 1 ? smaller(join, last - row) * cols : smaller(PIECE, cols - column);
    }
};

// piece(row, column, n) for every piece of rows [first, last), row by row.
template <class Piece> void for_pieces(int64 first, int64 last, const Columns& all, Piece piece) {
    for (int64 row = first; row < last; row += all.join)
        for (int64 column = 0; column < all.width; column += PIECE)
            piece(row, column, all.length(row, column, last));
}

template <class C> struct ColumnTotals {
    C part[PIECE], sum[PIECE], lost[PIECE];

    ONCE void clear(int64 n) {
        for (int64 j = 0; j < n; ++j) part[j] = sum[j] = lost[j] = C(0);
    }
    ONCE void add(const C* x, int64 n) {
        INDEPENDENT for (int64 j = 0; j < n; ++j) part[j] += x[j];
    }
    ONCE void fold(int64 n) {
        INDEPENDENT for (int64 j = 0; j < n; ++j) {
            add_exactly(part[j], sum[j], lost[j]);
            part[j] = C(0);
        }
    }
    // The sums of the columns of pieces of n elements, `join` rows side by side.
    ONCE void write(C* out, int64 n, int64 join) {
        fold(n);
        int64 cols = n / join;
        for (int64 copy = 1; copy < join; ++copy)
            INDEPENDENT for (int64 j = 0; j < cols; ++j) {
                add_exactly(sum[copy * cols + j], sum[j], lost[j]);
                lost[j] += lost[copy * cols + j];
            }
        INDEPENDENT for (int64 j = 0; j < cols; ++j) out[j] = sum[j] + lost[j];
    }
};

// out[j] = sum_i partial[i, j] / divisor
template <class C>
ONCE void finish_columns(const C* partial, void* out, int storage, int64 rows, int64 cols, C divisor) {
    Matrix<C> result(out, 0, storage);
    C sum[PIECE], lost[PIECE];
    for (int64 column = 0; column < cols; column += PIECE) {
        int64 n = smaller(PIECE, cols - column);
        for (int64 j = 0; j < n; ++j) sum[j] = lost[j] = C(0);
        for (int64 i = 0; i < rows; ++i) {
            const C* row = partial + i * cols + column;
            INDEPENDENT for (int64 j = 0; j < n; ++j) add_exactly(row[j], sum[j], lost[j]);
        }
        INDEPENDENT for (int64 j = 0; j < n; ++j) sum[j] = (sum[j] + lost[j]) / divisor;
        result.put(sum, 0, column, n);
    }
}

// values(row, column, n): the numbers of a piece, const C*. Their sums over each chunk of rows go to
// `partial` (include ColumnSumArguments's comment), and the sum over all to `out`, if not null.
template <class C, class A, class Values>
void sum_columns(const A& a, const Columns& all, void* partial, void* out, double divisor, Values values) {
    ColumnTotals<C> totals;
    int64 chunk_rows = a.chunk_rows > 0 ? a.chunk_rows : 1, chunks = (a.rows + chunk_rows - 1) / chunk_rows;
    for (int64 first = a.first; first < a.last; first += chunk_rows) {
        int64 last = smaller(first + chunk_rows, a.last);
        C* sums = static_cast<C*>(partial) + first / chunk_rows * a.cols;
        for (int64 column = 0; column < all.width; column += PIECE) {
            int64 n = all.join > 1 ? all.width : all.length(first, column, last);
            int count = 0;
            totals.clear(n);
            for (int64 row = first; row < last; row += all.join) {
                int64 length = all.length(row, column, last);
                totals.add(values(row, column, length), length);
                if (++count % SEQUENCE_ROWS == 0) totals.fold(n);
            }
            totals.write(sums + column, n, all.join);
        }
    }
    if (out != nullptr)
        finish_columns(static_cast<const C*>(partial), out, a.sum_storage, chunks, a.cols, C(divisor));
}
