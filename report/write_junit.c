/* report/write_junit.c - JUnit XML: one suite a model, one case a scheme, its figures as
 * properties, so that a CI server keeps them. Nothing fails here: limits are the gate's. */
#include "report/result.h"

#include <math.h>
#include <string.h>

void qb_xml_text(const char *text, FILE *stream)
{
    for (const unsigned char *p = (const unsigned char *)(text ? text : ""); *p; p++) switch (*p) {
        case '&':
            fputs("&amp;", stream);
            break;
        case '<':
            fputs("&lt;", stream);
            break;
        case '>':
            fputs("&gt;", stream);
            break;
        case '"':
            fputs("&quot;", stream);
            break;
        case 0xef: /* U+FFFE and U+FFFF are no characters either */
            if (p[1] == 0xbf && p[2] >= 0xbe) {
                fputc(' ', stream);
                p += 2;
                break;
            }
            fputc(*p, stream);
            break;
        default:
            fputc(*p < 0x20 ? ' ' : *p, stream); /* control characters are not allowed in XML 1.0 */
        }
}

static void write_property(const char *name, double value, FILE *stream)
{
    if (isfinite(value))
        fprintf(stream, "        <property name=\"%s\" value=\"%.10g\"/>\n", name, value);
}

static void write_case(const qb_result *r, FILE *stream)
{
    fputs("    <testcase classname=\"", stream);
    qb_xml_text(r->model.name, stream);
    fputs("\" name=\"", stream);
    qb_xml_text(r->scheme.name, stream);
    fputs("\">\n      <properties>\n", stream);
    for (const qb_result_field *f = qb_result_fields; f->path; f++)
        if (f->kind == QB_FIELD_REAL)
            write_property(f->path, *(const double *)((const char *)r + f->offset), stream);
    fputs("      </properties>\n    </testcase>\n", stream);
}

qb_status qb_results_write_junit(const qb_results *results, FILE *stream)
{
    fprintf(stream,
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n"
            "<testsuites name=\"qbench\" tests=\"%zu\" failures=\"0\">\n",
            results->n);
    for (size_t i = 0; i < results->n;) {
        size_t end = i + 1;
        while (end < results->n && qb_result_same_path(&results->items[i], &results->items[end]))
            end++;
        fputs("  <testsuite name=\"", stream);
        qb_xml_text(results->items[i].model.name, stream);
        fprintf(stream, "\" tests=\"%zu\" failures=\"0\">\n", end - i);
        for (; i < end; i++) write_case(&results->items[i], stream);
        fputs("  </testsuite>\n", stream);
    }
    fputs("</testsuites>\n", stream);
    return QB_OK;
}
