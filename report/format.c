/* report/format.c - see format.h. */
#include "report/format.h"

#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <string.h>

enum { TEXT_BYTES = 4096 };

static char *none(char *text)
{
    return strcpy(text, "-");
}

char *qb_format_count(int64_t n, char *text)
{
    if (n < 0) return none(text);
    char digits[32];
    int length = snprintf(digits, sizeof digits, "%" PRId64, n);
    char *p = text;
    for (int i = 0; i < length; i++) {
        if (i && (length - i) % 3 == 0) *p++ = ',';
        *p++ = digits[i];
    }
    *p = 0;
    return text;
}

/* 1.70e6: without the plus sign and zeros of %e. */
static void format_scientific(double value, char *text)
{
    int exponent = (int)floor(log10(fabs(value)));
    double mantissa =
        exponent < -300 ? value * 1e300 / pow(10, exponent + 300) : value / pow(10, exponent);
    if (fabs(mantissa) >= 9.995) mantissa /= 10, exponent++;
    snprintf(text, QB_FORMAT_BYTES, "%.2fe%d", mantissa, exponent);
}

char *qb_format_significant(double value, char *text)
{
    if (isnan(value)) return none(text);
    double size = fabs(value);
    if (size >= 1e6 || (size > 0 && size < 1e-4))
        format_scientific(value, text);
    else if (size >= 9999.5)
        qb_format_count((int64_t)llround(value), text);
    else if (size >= 999.5)
        snprintf(text, QB_FORMAT_BYTES, "%.0f", value);
    else
        snprintf(text, QB_FORMAT_BYTES, "%.*f",
                 size >= 99.95   ? 1
                 : size >= 1     ? 2
                 : size >= 0.095 ? 3
                                 : 4,
                 value);
    return text;
}

char *qb_format_perplexity(double value, char *text)
{
    if (!(value < 999.5)) return qb_format_significant(value, text);
    snprintf(text, QB_FORMAT_BYTES, "%.*f", value < 99.95 ? 3 : 2, value);
    return text;
}

char *qb_format_signed(double value, char *text)
{
    if (isnan(value)) return none(text);
    char digits[QB_FORMAT_BYTES];
    qb_format_significant(fabs(value), digits);
    snprintf(text, QB_FORMAT_BYTES, "%c%.40s", value < 0 ? '-' : '+', digits);
    return text;
}

char *qb_format_percent(double share, char *text)
{
    if (isnan(share)) return none(text);
    snprintf(text, QB_FORMAT_BYTES, "%.1f %%", 100 * share);
    return text;
}

char *qb_format_bytes(int64_t bytes, char *text)
{
    if (bytes < 0) return none(text);
    double mb = (double)bytes / 1e6;
    snprintf(text, QB_FORMAT_BYTES, mb < 10 ? "%.2f MB" : "%.0f MB", mb);
    return text;
}

char *qb_format_params(int64_t n, char *text)
{
    if (n < 0) return none(text);
    if (n >= 1000000000)
        snprintf(text, QB_FORMAT_BYTES, "%.2f G", (double)n / 1e9);
    else if (n >= 1000000)
        snprintf(text, QB_FORMAT_BYTES, "%.1f M", (double)n / 1e6);
    else
        qb_format_count(n, text);
    return text;
}

char *qb_format_penalty(const qb_result *result, char *text)
{
    qb_interval ci = result->quality.penalty_ci95;
    char low[QB_FORMAT_BYTES], high[QB_FORMAT_BYTES], mean[QB_FORMAT_BYTES];
    qb_format_signed(result->quality.penalty, mean);
    if (isnan(ci.low) || isnan(ci.high))
        snprintf(text, QB_FORMAT_BYTES, "%.20s", mean);
    else
        snprintf(text, QB_FORMAT_BYTES, "%.18s [%.18s, %.18s]", mean,
                 qb_format_significant(ci.low, low), qb_format_significant(ci.high, high));
    return text;
}

/* One letter, bits and axis: "w8/out ". */
static void append_part(char *text, char letter, int64_t bits, const char *axis)
{
    size_t n = strlen(text), room = QB_FORMAT_BYTES - n;
    if (bits <= 0) return;
    if (axis)
        snprintf(text + n, room, "%c%" PRId64 "/%s ", letter, bits, axis);
    else
        snprintf(text + n, room, "%c%" PRId64 " ", letter, bits);
}

/* Takes away a last character that was cut off, and a last space. */
static void trim_end(char *text)
{
    size_t n = strlen(text), start = n;
    while (start && ((unsigned char)text[start - 1] & 0xc0) == 0x80) start--;
    if (start && (unsigned char)text[start - 1] >= 0xc0) {
        unsigned char first = (unsigned char)text[start - 1];
        size_t bytes = first >= 0xf0 ? 4 : first >= 0xe0 ? 3 : 2;
        if (n - (start - 1) < bytes) text[start - 1] = 0;
    }
    n = strlen(text);
    if (n && text[n - 1] == ' ') text[n - 1] = 0;
}

char *qb_format_scheme(const qb_result *r, char *text)
{
    text[0] = 0;
    append_part(text, 'w', r->scheme.weight_bits, r->scheme.weight_axis);
    append_part(text, 'a', r->scheme.act_bits, r->scheme.act_axis);
    append_part(text, 'o', r->scheme.out_bits, NULL);
    trim_end(text);
    return text[0] ? text : none(text);
}

char *qb_format_rate(const qb_result_timing *timing, char *text)
{
    if (isnan(timing->tok_per_s)) return none(text);
    char rate[QB_FORMAT_BYTES];
    if (timing->tok_per_s >= 1000 && timing->tok_per_s < 1e15)
        qb_format_count((int64_t)llround(timing->tok_per_s), rate);
    else
        qb_format_significant(timing->tok_per_s, rate);
    qb_interval ci = timing->tok_per_s_ci95;
    if (isnan(ci.low))
        snprintf(text, QB_FORMAT_BYTES, "%.30s", rate);
    else
        snprintf(text, QB_FORMAT_BYTES, "%.30s ±%.1f %%", rate,
                 50 * (ci.high - ci.low) / timing->tok_per_s);
    return text;
}

char *qb_format_ratio(const qb_result_timing *timing, const qb_result_timing *full, char *text)
{
    double ratio = timing->tok_per_s / full->tok_per_s;
    if (!isfinite(ratio)) return none(text);
    snprintf(text, QB_FORMAT_BYTES, "%.2fx", ratio);
    return text;
}

static int columns_of(const char *text, size_t n_bytes)
{
    int n = 0;
    for (size_t i = 0; i < n_bytes; i++) n += ((unsigned char)text[i] & 0xc0) != 0x80;
    return n;
}

int qb_text_columns(const char *text)
{
    return columns_of(text, strlen(text));
}

void qb_write_right(FILE *stream, int columns, const char *text)
{
    int n = qb_text_columns(text);
    fprintf(stream, "%*s%s", n < columns ? columns - n : 1, "", text);
}

void qb_write_wrapped(FILE *stream, int indent, const char *text)
{
    int at = 0;
    while (*text) {
        size_t n = strcspn(text, " ");
        int columns = columns_of(text, n);
        if (at && indent + at + 1 + columns > QB_SCREEN_COLUMNS) {
            fprintf(stream, "\n%*s", indent, "");
            at = 0;
        }
        fprintf(stream, "%s%.*s", at ? " " : "", (int)n, text);
        at += columns + (at > 0);
        text += n;
        while (*text == ' ') text++;
    }
    fputc('\n', stream);
}

void qb_write_labelled(FILE *stream, const char *label, int indent, const char *format, ...)
{
    char text[TEXT_BYTES];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    int pad = indent - qb_text_columns(label);
    fprintf(stream, "%s%*s", label, pad > 1 ? pad : 1, "");
    qb_write_wrapped(stream, indent, text);
}
