Feature: A batch task makes room for an interactive one that waits too long

  Background:
    Given a pool "words" with 1 slot
    And its tokens take 10 ms

  @ORCHD-PREEMPT-1 @ORCHD-PREEMPT-2 @ORCHD-ATT-2
  Scenario Outline: A <kind> batch answer is cut, the interactive one goes first, and the text is that of an uncut run
    Given it cuts batch tasks for interactive ones that have waited 50 ms
    And the pool "words" is ready
    When alice submits and streams "uncut":
      | prompt      | Once upon a time |
      | max_tokens  | 80               |
      | sampling    | <sampling>       |
      | determinism | <determinism>    |
    Then the stream "uncut" ends with end
    When alice submits and streams "long" with the seed of "uncut":
      | prompt      | Once upon a time |
      | max_tokens  | 80               |
      | priority    | batch            |
      | sampling    | <sampling>       |
      | determinism | <determinism>    |
    And "long" has received 3 tokens
    And alice submits and streams "quick":
      | prompt     | What time is it? |
      | max_tokens | 4                |
    Then the stream "quick" ends with end
    And the stream "long" ends with end
    And the stream "long" started once and counts 80 tokens without gaps
    And the streams "uncut" and "long" have the same tokens
    And the end event of "long" says:
      | tokens_out    | 80      |
      | finish_reason | length  |
      | continuations | 1       |
      | exact         | <exact> |
    And "quick" ended before "long"
    And the metrics are:
      | tasks_preempted_total{pool_id="words"} | 1 |

    Examples:
      | kind           | sampling          | determinism | exact      |
      | greedy         | {"temperature":0} | best_effort | unverified |
      | sampled strict | {}                | strict      | yes        |

  @ORCHD-PREEMPT-1
  Scenario: Without the option a batch task runs to its end first
    Given the pool "words" is ready
    When alice submits and streams "long":
      | prompt     | Once upon a time |
      | max_tokens | 60               |
      | priority   | batch            |
    And "long" has received 3 tokens
    And alice submits and streams "quick":
      | prompt     | What time is it? |
      | max_tokens | 4                |
    Then the stream "quick" ends with end
    And "long" ended before "quick"
    And the end event of "long" says:
      | continuations | 0   |
      | exact         | yes |

  @ORCHD-PREEMPT-3
  Scenario: A task that runs longer than its pool allows ends, and the engine works on
    Given its tasks may run 300 ms
    And the pool "words" is ready
    When alice submits and streams "endless":
      | prompt     | Once upon a time |
      | max_tokens | 3000             |
    Then the stream "endless" ends with error DECODE_TIMEOUT
    When alice submits and streams "next":
      | prompt     | Once upon a time |
      | max_tokens | 4                |
    Then the stream "next" ends with end
    And the pool "words" is ready after 0 restarts
