Feature: A strict task runs alone and says so

  Background:
    Given a pool "words" with 2 slots
    And its tokens take 10 ms
    And the pool "words" is ready

  @ORCHD-TASK-11
  Scenario: started tells which it is, and a strict task reuses no context
    When alice submits and streams "ordinary":
      | prompt     | Once upon a time |
      | max_tokens | 3                |
    Then the stream "ordinary" ends with end
    And the started event of "ordinary" says:
      | determinism | best_effort |
    When alice submits and streams "strict":
      | prompt      | Once upon a time |
      | max_tokens  | 3                |
      | determinism | strict           |
    Then the stream "strict" ends with end
    And the started event of "strict" says:
      | determinism | strict |
      | kv_warmth   | false  |

  @ORCHD-TASK-11
  Scenario: Nothing else runs beside a strict task
    When alice submits "strict":
      | prompt      | Once upon a time |
      | max_tokens  | 3000             |
      | determinism | strict           |
    And "strict" is running
    And alice submits "ordinary" of priority interactive
    Then "ordinary" is queued
    And "ordinary" waits because "strict"
    When alice cancels "strict"
    Then "ordinary" is done

  @ORCHD-TASK-11
  Scenario: A strict task waits until its replica is empty
    When alice submits "ordinary":
      | prompt     | Once upon a time |
      | max_tokens | 3000             |
    And "ordinary" is running
    And alice submits "strict":
      | prompt      | Once upon a time |
      | max_tokens  | 3                |
      | determinism | strict           |
    Then "strict" is queued
    And "strict" waits because "alone"
    When alice cancels "ordinary"
    Then "strict" is done

  @ORCHD-TASK-11
  Scenario Outline: A strict task says the same again with the seed that was told, whatever ran in between
    Given the pool "words" is ready
    When alice submits and streams "first":
      | prompt      | Once upon a time |
      | max_tokens  | 12               |
      | sampling    | <sampling>       |
      | determinism | strict           |
    Then the stream "first" ends with end
    When alice submits and streams "ordinary":
      | prompt     | Once upon a time there was |
      | max_tokens | 5                          |
    Then the stream "ordinary" ends with end
    When alice submits and streams "again" with the seed of "first":
      | prompt      | Once upon a time |
      | max_tokens  | 12               |
      | sampling    | <sampling>       |
      | determinism | strict           |
    Then the stream "again" ends with end
    And the streams "first" and "again" have the same tokens
    And the end event of "again" says:
      | continuations | 0   |
      | exact         | yes |
    And the started event of "again" says:
      | kv_warmth | false |

    Examples:
      | sampling            |
      | {"temperature":0}   |
      | {"temperature":0.8} |

  @ORCHD-TASK-11
  Scenario: Another seed, another text; and the same after the daemon was started again
    Given the pool "words" is ready
    When alice submits and streams "one":
      | prompt      | Once upon a time |
      | max_tokens  | 12               |
      | seed        | 1                |
      | determinism | strict           |
    And alice submits and streams "two":
      | prompt      | Once upon a time |
      | max_tokens  | 12               |
      | seed        | 2                |
      | determinism | strict           |
    Then the stream "one" ends with end
    And the stream "two" ends with end
    And the streams "one" and "two" have different tokens
    When the daemon is stopped
    And the daemon starts again
    And alice submits and streams "later":
      | prompt      | Once upon a time |
      | max_tokens  | 12               |
      | seed        | 1                |
      | determinism | strict           |
    Then the stream "later" ends with end
    And the streams "one" and "later" have the same tokens
